"""One answer of `cropl ask`: the method that was asked for, the context in which it answers, and what it cost."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from cropl.commands.ask_options import WITHOUT_REGIONS, Options
from cropl.grid import Region
from cropl.tiling import Tokens

if TYPE_CHECKING:
    from PIL import Image

    from cropl.models.inputs import VLMInputs
    from cropl.models.vlm import VLM


@dataclass
class Answered:
    """An answer, and the seconds of its generation with the image already encoded.

    `layers` are the visual tokens that each decoder layer saw; `left` says of each of the image's tokens whether the
    last one did, None where nothing inside the language model was dropped.
    """

    text: str
    seconds: float
    layers: tuple[int, ...]
    left: list[bool] | None = None


def chosen(options: Options, method: str, layer: int, vlm: VLM, grid: Tokens) -> Any:
    """The pruning method; None for dense."""
    from cropl.commands.models import checkpoint
    from cropl.pruning import ILP, PLC

    if method == "dense":
        return None
    if method == "plc":
        return PLC.from_pretrained(checkpoint(options.model))
    if method in ("ilp", "prune"):
        return ILP(layer=0, positions="compact") if method == "prune" else ILP(layer=layer)

    from cropl.evaluation.arm_run import Run, usual_layer
    from cropl.evaluation.arms import read_arms

    (arm,) = read_arms([{"method": method, "layer": options.layer, "budget": options.budget}], (0,))
    full = usual_layer(arm, vlm.num_layers) if options.layer is None else options.layer
    run = Run(arm, arm.runs()[0], full, vlm.num_layers)
    run.count([grid.num_tokens])
    return run.method([options.question])


def patch(
    method: str, chosen: Any, vlm: VLM, region: Region | None, grid: Tokens, keep: Any
) -> Callable[[], AbstractContextManager[Any]]:
    """What the method answers in; made anew for each answer."""
    from cropl.pruning import pruned

    if chosen is None:
        return nullcontext
    if method == "plc":
        return partial(pruned, vlm, chosen, regions=[region], grids=[grid])
    return partial(pruned, vlm, chosen) if method in WITHOUT_REGIONS else partial(pruned, vlm, chosen, keep=[keep])


def answer(
    vlm: VLM,
    inputs: VLMInputs,
    image: Image.Image,
    question: str,
    context: Callable[[], AbstractContextManager[Any]],
    max_new_tokens: int,
) -> Answered:
    """One greedy answer."""
    from cropl.evaluation.answer import visual_left, visual_per_layer

    with context() as patch:
        if patch is not None and patch.looks_into_tower:
            inputs = vlm.inputs([image], [question], vlm.encode_images([image]))
        began = time.perf_counter()
        text = vlm.generate(inputs, max_new_tokens=max_new_tokens, do_sample=False)[0]
    seconds, layers = time.perf_counter() - began, visual_per_layer(vlm, inputs, patch, 0)
    return Answered(text, seconds, layers, visual_left(vlm, inputs, patch, 0))


def flops(vlm: VLM, inputs: VLMInputs, layers: tuple[int, ...], chosen: Any) -> tuple[float, float]:
    """FLOPs of the language model's prefill, with what the method takes to decide: pruned, and dense."""
    from cropl.metrics.cost import decoder_flops
    from cropl.pruning import InnerLLM, PreLLM

    grid, config = inputs.grids[0], vlm.decoder.config
    text = int(inputs.tensors["attention_mask"][0].sum()) - grid.num_tokens
    flops: float = decoder_flops(config, [text + visual for visual in layers])
    if isinstance(chosen, InnerLLM):
        flops += chosen.flops(config, grid.num_tokens, layers, text)
    elif isinstance(chosen, PreLLM):
        flops += chosen.flops(grid, vlm.model.config)
    return flops, decoder_flops(config, [text + grid.num_tokens] * vlm.num_layers)


def depth(layers: tuple[int, ...]) -> str:
    """Where the first and the last visual tokens are dropped, in words."""
    falls = [place for place in range(1, len(layers)) if layers[place] < layers[place - 1]]
    if not falls:
        return ""
    places = f"layer {falls[0]}" if len(falls) == 1 else f"layers {falls[0]} to {falls[-1]}"
    return f", from decoder {places} of {len(layers)} on"
