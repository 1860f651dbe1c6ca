"""What a run costs per question: prefill FLOPs by shapes, key-value bytes read off caches, with and without helpers.

Three totals, because a saving in the language model can be spent elsewhere: the language model alone, with the vision
tower and projector, and with the localizer (part of the price wherever predicted regions, or their size, are used).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from cropl.errors import UsageError
from cropl.evaluation.answer import Answers
from cropl.evaluation.plan import Run
from cropl.grid import TokenGrid
from cropl.metrics import cost
from cropl.models.vlm import VLM
from cropl.prompt import localizer_prompt
from cropl.pruning.base import PreLLM

if TYPE_CHECKING:
    from cropl.data.sample import Sample
    from cropl.models.localizer import Localizer


@dataclass
class Costs:
    """Means over the questions of one run.

    Attributes:
        prefill_flops: of the language model.
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
        vision: FLOPs of the vision tower and projector; None for towers whose FLOPs are not known here.
        localizing: FLOPs of the localizer; None where there is none.
        localizer_resolution: the least and the largest area in pixels that the localizer sees.
    """

    visual_tokens: float
    vision: float | None
    localizing: float | None
    localizer_resolution: tuple[int, int] | None


def fixed_costs(
    vlm: VLM, samples: Sequence[Sample], grids: Sequence[TokenGrid], localizer: Localizer | None
) -> FixedCosts:
    """Everything about costs that can go wrong, so that it goes wrong before the answers and not after them.

    Raises:
        UsageError: the FLOPs of this decoder cannot be counted.
    """
    try:
        cost.decoder_flops(vlm.decoder.config, [1] * vlm.num_layers)
    except (AttributeError, ValueError) as error:
        raise UsageError(f"the FLOPs of {type(vlm.decoder).__name__} cannot be counted: {error}") from None
    tokens = [grid.num_tokens for grid in grids]
    localizing, resolution = (None, None) if localizer is None else _localizer_cost(localizer, samples)
    return FixedCosts(_mean(tokens), _vision(vlm, tokens), localizing, resolution)


def _vision(vlm: VLM, tokens: Sequence[int]) -> float | None:
    """Mean FLOPs to turn the images into their visual tokens; None where the tower is not known."""
    config = vlm.model.config
    merged = getattr(config.vision_config, "spatial_merge_size", 1) ** 2
    try:
        return _mean([cost.vision_flops(config, patches=count * merged) for count in tokens])
    except ValueError:
        return None


def measure_costs(
    vlm: VLM, runs: Sequence[Run], answers: Answers, fixed: FixedCosts, grids: Sequence[TokenGrid]
) -> dict[str, Costs]:
    """The costs of every run by its key, from the tokens that its prefills really had in each layer."""
    text_config = vlm.decoder.config
    by_run = {}
    for run in runs:
        lengths = [
            [text + visual for visual in layers]
            for text, layers in zip(answers.text_tokens, answers.visual[run.key], strict=True)
        ]
        flops = _mean([cost.decoder_flops(text_config, layers) for layers in lengths])
        method = run.method([""])
        compressing = _mean([method.flops(grid) for grid in grids]) if isinstance(method, PreLLM) else 0.0
        with_vision = _plus(flops + compressing, fixed.vision)
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


def _localizer_cost(localizer: Localizer, samples: Sequence[Sample]) -> tuple[float | None, tuple[int, int]]:
    """Mean FLOPs of locating one question (vision, prefill, decoding of the coordinates), and the pixels it looks at.

    The region's four coordinates take a prefill and three decoding steps; a step attends to everything before it.
    """
    vlm = localizer.vlm
    config, text_config = vlm.model.config, vlm.decoder.config
    steps = 3 if localizer.codec.added_tokens else 8
    tokenizer = vlm.processor.tokenizer

    def words(sample: Sample) -> int:
        return len(tokenizer(localizer_prompt(sample.question), add_special_tokens=False)["input_ids"])

    grids: dict[tuple[int, int], int] = {}
    template = 0
    for sample in samples:
        size = (sample.width, sample.height)
        if size not in grids:  # shapes are all that counts: an empty picture of the same size stands for the image
            inputs = vlm.inputs([Image.new("RGB", size)], [localizer_prompt(sample.question)])
            grids[size] = inputs.grids[0].num_tokens
            template = int(inputs.tensors["attention_mask"].sum()) - grids[size] - words(sample)
    patches = config.vision_config.spatial_merge_size**2
    flops, areas = [], []
    for sample in samples:
        visual = grids[sample.width, sample.height]
        length = visual + template + words(sample)
        prefill = cost.decoder_flops(text_config, [length] * vlm.num_layers)
        decode = cost.linear_flops(text_config, [steps] * vlm.num_layers, logits=steps)
        # One query against n keys costs twice its share of a causal triangle.
        decode += sum(2 * cost.attention_flops(text_config, [1] * vlm.num_layers) * (length + i) for i in range(steps))
        flops.append(cost.vision_flops(config, patches=visual * patches) + prefill + decode)
        areas.append(visual * patches * config.vision_config.patch_size**2)
    return _mean(flops), (min(areas), max(areas))


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values))
