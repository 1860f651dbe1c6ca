"""The methods of the pruning bench, and what each of them takes a budget for."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from cropl.bench.prune.shapes import Shape
from cropl.budget import InfeasibleBudget
from cropl.models.compressor import Compressor, CompressorConfig
from cropl.pruning import (
    ILP,
    PLC,
    Dense,
    DivPrune,
    FastV,
    Hybrid,
    InnerLLM,
    PreLLM,
    PyramidDrop,
    RandomTokens,
    Schedule,
    SparseVLM,
    UniformTokens,
    VisionZip,
    VisPruner,
)
from cropl.pruning.select import average, scaled_layer, scaled_layers

Method = InnerLLM | PreLLM

PYRAMIDDROP = (2, 8, 16)
"""Layers of PyramidDrop's stages, as published for tight budgets."""

SPARSEVLM = {192: (300, 200, 110), 128: (303, 110, 36), 64: (66, 30, 17)}
"""Published counts behind each of SparseVLM's layers, of 576 tokens, by the budget that they stand for."""

MEANINGS = {
    "post_prune": "visual tokens behind the last prune",
    "layer_average": "visual tokens as the decoder layers average them",
    "published_counts": "the published counts behind each of its layers that stand for this budget, in proportion",
    "own": "the method's own number of tokens, which no budget changes",
}
"""What the number that a budget is means, by the name that rows have for it."""


@dataclass(frozen=True)
class Entry:
    """A method of the bench.

    Attributes:
        make: the method for (tokens, shape, decoder layers); raises `InfeasibleBudget` where there is none.
        meaning: of the tokens, one of `MEANINGS`.
        region: how many times the budget the regions hold that it is given.
    """

    make: Callable[[int, Shape, int], Method]
    meaning: str = "post_prune"
    region: int = 1


def _pyramiddrop(tokens: int, shape: Shape, num_layers: int) -> Method:
    """With the ratio whose layers average to this count."""
    total = shape.visual_tokens
    layers = scaled_layers(PYRAMIDDROP, num_layers)
    least = math.ceil(average([1] * len(layers), layers, total, num_layers))
    if tokens < least:  # one token behind each stage, and still the layers in front take more
        raise InfeasibleBudget(f"least {least}")
    return PyramidDrop.for_budget(tokens, total, "layer_average", num_layers, layers)


def _sparsevlm(tokens: int, shape: Shape, num_layers: int, **options: Any) -> Method:
    """With the published counts of the budget that is nearest in its share of the tokens, scaled to this one."""
    total = shape.visual_tokens
    named = min(SPARSEVLM, key=lambda budget: abs(budget / 576 - tokens / total))
    kept = [min(total, max(1, round(count * tokens / named))) for count in SPARSEVLM[named]]
    return SparseVLM(kept, scaled_layers((2, 6, 15), num_layers), **options)


def _plc(tokens: int, shape: Shape, num_layers: int) -> Method:
    """As published, 64 tokens and 4, with random weights."""
    config = CompressorConfig(shape.model_config().get_text_config().hidden_size)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return PLC(Compressor(config).eval())


def _schedule(tokens: int, shape: Shape, num_layers: int) -> Method:
    """The region before layer 2, the budget by attention before layer 8."""
    first, second = scaled_layers((2, 8), num_layers)
    return Schedule([ILP(first), FastV(tokens, second)])


def _of_crops(make: Callable[[int], Method]) -> Callable[[int, Shape, int], Method]:
    """A method that gives each crop of a picture its part of the budget."""

    def made(tokens: int, shape: Shape, num_layers: int) -> Method:
        if tokens < shape.crops:
            raise InfeasibleBudget(f"least {shape.crops}")
        return make(tokens)

    return made


METHODS: dict[str, Entry] = {
    "ilp": Entry(lambda tokens, shape, layers: ILP(scaled_layer(2, layers))),
    "prune": Entry(lambda tokens, shape, layers: ILP(0, "compact")),
    "fastv": Entry(lambda tokens, shape, layers: FastV(tokens, scaled_layer(2, layers))),
    "pyramiddrop": Entry(_pyramiddrop, "layer_average"),
    "sparsevlm": Entry(_sparsevlm, "published_counts"),
    "sparsevlm+": Entry(
        lambda tokens, shape, layers: _sparsevlm(tokens, shape, layers, recycle=0.0), "published_counts"
    ),
    "divprune": Entry(lambda tokens, shape, layers: DivPrune(tokens)),
    "visionzip": Entry(_of_crops(VisionZip)),
    "vispruner": Entry(_of_crops(VisPruner)),
    "plc": Entry(_plc, "own"),
    "hybrid": Entry(lambda tokens, shape, layers: Hybrid(tokens, scaled_layer(2, layers)), region=2),
    "schedule": Entry(_schedule, region=2),
    "random": Entry(lambda tokens, shape, layers: RandomTokens(tokens, layer=scaled_layer(2, layers))),
    "uniform": Entry(lambda tokens, shape, layers: UniformTokens(tokens, layer=scaled_layer(2, layers))),
    "dense": Entry(lambda tokens, shape, layers: Dense(), "own"),
}
"""Methods by name."""
