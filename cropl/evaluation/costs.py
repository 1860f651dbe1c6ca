"""What a run costs per question: prefill FLOPs by shapes, key-value bytes read off caches, with and without helpers.

Three totals, because a saving in the language model can be spent elsewhere: the language model alone, with the vision
tower and projector, and with the localizer (part of the price wherever predicted regions, or their size, are used).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cropl.errors import UsageError
from cropl.evaluation.answers import Answers
from cropl.evaluation.arm_run import Run
from cropl.grid import GRID, Region, TokenGrid
from cropl.metrics import cost
from cropl.models.localizer import MAX_NEW_TOKENS
from cropl.models.vlm import VLM
from cropl.prompt import localizer_prompt
from cropl.pruning.base import InnerLLM, PreLLM
from cropl.tiling import TokenMap, Tokens

if TYPE_CHECKING:
    from cropl.data.sample import Sample
    from cropl.models.localizer import Localizer

TREE = GRID + GRID**2 + GRID * GRID * (GRID + 1) // 2
"""Tokens behind a prompt that the distribution of regions takes: all prefixes of one, two and three coordinates."""


@dataclass
class Costs:
    """Means over the questions of one run.

    Attributes:
        prefill_flops: of the language model, with what a method inside it takes to decide.
        with_vision: plus the vision tower, the projector, and what compresses before the language model, for the image
            of each question; None for unknown towers.
        with_localizer: plus what gave the regions: nothing for true regions and for methods without, the localizer
            where it was the source (or gave their size); None where the cost is unknown.
        kv_bytes: of the key-value cache after the prefill.
        visual_tokens: visual tokens before pruning.
    """

    prefill_flops: float
    with_vision: float | None
    with_localizer: float | None
    kv_bytes: float
    visual_tokens: float


@dataclass
class FixedCosts:
    """What all runs share, known before the first answer; FLOPs are means over the questions.

    Attributes:
        visual_tokens: of an image, before pruning.
        vision: FLOPs of the vision tower and projector of each model that answers, by the name that arms give it (None
            is the study's); None for towers whose FLOPs are not known here.
        localizing: FLOPs of the localizer; None where there is none.
        localizer_resolution: the least and the largest area in pixels that the localizer sees.
    """

    visual_tokens: float
    vision: Mapping[str | None, float | None]
    localizing: float | None
    localizer_resolution: tuple[int, int] | None


def fixed_costs(
    models: Mapping[str | None, VLM],
    samples: Sequence[Sample],
    grids: Sequence[Tokens],
    localizer: Localizer | None,
) -> FixedCosts:
    """Everything about costs that can go wrong, so that it goes wrong before the answers and not after them.

    `models` are those that answer, by the name that arms give them; None is the study's.

    Raises:
        UsageError: the FLOPs of a decoder cannot be counted.
    """
    for vlm in models.values():
        try:
            cost.decoder_flops(vlm.decoder.config, [1] * vlm.num_layers)
        except (AttributeError, ValueError) as error:
            raise UsageError(f"the FLOPs of {type(vlm.decoder).__name__} cannot be counted: {error}") from None
    vision = {name: _vision(vlm, grids) for name, vlm in models.items()}
    localizing, resolution = (None, None) if localizer is None else _localizer_cost(localizer, samples)
    return FixedCosts(_mean([grid.num_tokens for grid in grids]), vision, localizing, resolution)


def _vision(vlm: VLM, grids: Sequence[Tokens]) -> float | None:
    """Mean FLOPs to turn the images into their visual tokens; None where the tower is not known."""
    try:
        return _mean([_vision_of(vlm, grid) for grid in grids])
    except ValueError:
        return None


def _vision_of(vlm: VLM, tokens: Tokens) -> int:
    """FLOPs to turn one image into its visual tokens: all crops of it, or patches before merging."""
    if isinstance(tokens, TokenMap):
        return cost.vision_flops(vlm.model.config, crops=tokens.crops)
    assert isinstance(tokens, TokenGrid)
    return cost.vision_flops(vlm.model.config, (tokens.rows * vlm.merge, tokens.cols * vlm.merge))


def measure_costs(
    vlm: VLM, runs: Sequence[Run], answers: Answers, fixed: FixedCosts, grids: Sequence[Tokens]
) -> dict[str, Costs]:
    """The costs of every run by its key, from the tokens that its prefills really had in each layer."""
    text_config = vlm.decoder.config
    by_run = {}
    for run in runs:
        lengths = [
            [text + visual for visual in layers]
            for text, layers in zip(answers.text_tokens[run.key], answers.visual[run.key], strict=True)
        ]
        method = run.method([""])
        flops = _mean([cost.decoder_flops(text_config, layers) for layers in lengths])
        if isinstance(method, InnerLLM):
            counted = zip(grids, answers.visual[run.key], answers.text_tokens[run.key], strict=True)
            flops += _mean([method.flops(text_config, grid.num_tokens, seen, text) for grid, seen, text in counted])
        compressing = (
            _mean([method.flops(grid, vlm.model.config) for grid in grids]) if isinstance(method, PreLLM) else 0.0
        )
        with_vision = _plus(flops + compressing, fixed.vision[run.arm.model])
        by_run[run.key] = Costs(
            prefill_flops=flops,
            with_vision=with_vision,
            with_localizer=_plus(with_vision, _helper(run.arm.region_source, fixed)),
            kv_bytes=_mean([sum(layers) for layers in lengths]) * _bytes_per_token(answers.probes[run.key], lengths),
            visual_tokens=fixed.visual_tokens,
        )
    return by_run


def _helper(source: str, fixed: FixedCosts) -> float | None:
    """FLOPs of what gave the regions; None where nobody has counted them (a file, zero-shot grounding)."""
    if source in ("none", "gt"):
        return 0.0
    # Centre and random regions have the size of the localizer's wherever there is a localizer.
    return fixed.localizing if source in ("predicted", "center", "random") else None


def _plus(a: float | None, b: float | None) -> float | None:
    return None if a is None or b is None else a + b


def _bytes_per_token(probes: Sequence[tuple[int, int]], lengths: Sequence[Sequence[int]]) -> float:
    """Bytes that one token takes in one layer, from caches that were read; all of them must agree."""
    ratios = {size / sum(lengths[question]) for question, size in probes}
    assert len(ratios) == 1, f"caches disagree with the tokens recorded per layer: {sorted(ratios)} bytes per token"
    return ratios.pop()


def _localizer_cost(localizer: Localizer, samples: Sequence[Sample]) -> tuple[float, tuple[int, int]]:
    """Mean FLOPs of locating one question (vision, prefill, reading the region off), and the pixels it looks at."""
    vlm = localizer.vlm
    config, text_config = vlm.model.config, vlm.decoder.config
    tokenizer = vlm.processor.tokenizer

    def words(sample: Sample) -> int:
        return len(tokenizer(localizer_prompt(sample.question), add_special_tokens=False)["input_ids"])

    grids: dict[tuple[int, int], Tokens] = {}
    template = 0
    for sample in samples:
        size = (sample.width, sample.height)
        if size not in grids:  # shapes are all that counts: an empty picture of the same size stands for the image
            inputs = vlm.inputs([Image.new("RGB", size)], [localizer_prompt(sample.question)])
            grids[size] = inputs.grids[0]
            template = int(inputs.tensors["attention_mask"].sum()) - grids[size].num_tokens - words(sample)
    flops, areas = [], []
    for sample in samples:
        grid = grids[sample.width, sample.height]
        length = grid.num_tokens + template + words(sample)
        prefill = cost.decoder_flops(text_config, [length] * vlm.num_layers, logits=0)
        flops.append(_vision_of(vlm, grid) + prefill + _reading(localizer, length))
        areas.append(grid.num_tokens * (vlm.merge * config.vision_config.patch_size) ** 2)
    return _mean(flops), (min(areas), max(areas))


def _reading(localizer: Localizer, length: int) -> int:
    """FLOPs of what follows the prefill of `length` tokens: further tokens, and the head's rows at every position.

    Coordinate tokens take their own rows of the head alone: eight at each of four steps, or all sixteen at every
    prefix of the distribution. There each prefix meets all keys, and a mask leaves it its own.
    """
    vlm, codec = localizer.vlm, localizer.codec
    config, layers = vlm.decoder.config, vlm.num_layers
    if not codec.added_tokens:
        answer = vlm.processor.tokenizer(codec.encode(Region.full()), add_special_tokens=False)["input_ids"]
        tokens = min(len(answer), MAX_NEW_TOKENS - 1)  # what comes of the last of them is the end
        keys = [length + step + 1 for step in range(tokens)]
        head = cost.linear_flops(config, [0] * layers, logits=tokens + 1)
    elif localizer.readout.stepwise:
        tokens = 3
        keys = [length + step + 1 for step in range(tokens)]
        head = 2 * config.hidden_size * GRID * (tokens + 1)
    else:
        tokens = TREE
        keys = [length + tokens] * tokens
        head = 2 * config.hidden_size * 2 * GRID * (tokens + 1)
    # A pair of a query and a key costs twice its share of a causal triangle.
    products = 2 * cost.attention_flops(config, [1] * layers) * sum(keys)
    return cost.linear_flops(config, [tokens] * layers, logits=0) + products + head


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
