"""What pruning is measured on: random prompts of a shape's lengths, and methods set to a budget.

Which tokens stay follows from random weights and means nothing; how many, and where, cost what they do in earnest.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cropl.bench.prune_shapes import Shape
from cropl.budget import InfeasibleBudget
from cropl.errors import UsageError, nearest
from cropl.grid import GRID, Region, TokenGrid
from cropl.models.inputs import VLMInputs, as_encoder_output
from cropl.models.vlm import VLM
from cropl.pruning import (
    ILP,
    Dense,
    DivPrune,
    FastV,
    InnerLLM,
    PyramidDrop,
    RandomTokens,
    SparseVLM,
    UniformTokens,
    keep_mask,
)

REGIONS = "regions"
"""The budget "as the regions come": another count in every row."""

Budget = int | float | str

PUBLISHED_LAYERS = 32
"""Layers of the models that the methods' layers were published for; they scale with a model's depth."""

SPARSEVLM = {192: (300, 200, 110), 128: (303, 110, 36), 64: (66, 30, 17)}
"""Published counts behind each of SparseVLM's layers, of 576 tokens, by the budget that they stand for."""


@dataclass(frozen=True)
class Arm:
    """A method at a budget.

    Attributes:
        name: of the method, one of `METHODS`.
        budget: as it was asked for.
        tokens: that budget as a count; None for `REGIONS`.
        method: for `pruned`.
        keep: bool vectors, one per row, for methods that want them.
    """

    name: str
    budget: Budget
    tokens: int | None
    method: InnerLLM
    keep: list[Tensor] | None = None


def at_depth(layer: int, num_layers: int) -> int:
    """A layer that was published for 32 of them, in a model of another depth."""
    return max(1, round(layer * num_layers / PUBLISHED_LAYERS))


def _pyramiddrop(tokens: int, total: int, num_layers: int) -> InnerLLM:
    """With the ratio whose layers average to this count, or to the least that its full layers leave possible."""
    try:
        return PyramidDrop.for_budget(tokens, total, "layer_average", num_layers)
    except InfeasibleBudget:
        return PyramidDrop(1 / total, [at_depth(layer, num_layers) for layer in (2, 8, 16)])


def _sparsevlm(tokens: int, total: int, num_layers: int, **options: Any) -> InnerLLM:
    """With the published counts of the budget that is nearest in its share of the tokens, scaled to this one."""
    named = min(SPARSEVLM, key=lambda budget: abs(budget / 576 - tokens / total))
    kept = [min(total, max(1, round(count * tokens / named))) for count in SPARSEVLM[named]]
    return SparseVLM(kept, [at_depth(layer, num_layers) for layer in (2, 6, 15)], **options)


METHODS: dict[str, Callable[[int, int, int], InnerLLM]] = {
    "ilp": lambda tokens, total, layers: ILP(at_depth(2, layers)),
    "prune": lambda tokens, total, layers: ILP(0, "compact"),
    "fastv": lambda tokens, total, layers: FastV(tokens, at_depth(2, layers)),
    "pyramiddrop": _pyramiddrop,
    "sparsevlm": _sparsevlm,
    "sparsevlm+": lambda tokens, total, layers: _sparsevlm(tokens, total, layers, recycle=0.0),
    "divprune": lambda tokens, total, layers: DivPrune(tokens),
    "random": lambda tokens, total, layers: RandomTokens(tokens, layer=at_depth(2, layers)),
    "uniform": lambda tokens, total, layers: UniformTokens(tokens, layer=at_depth(2, layers)),
    "dense": lambda tokens, total, layers: Dense(),
}
"""Methods by name, for (tokens kept, visual tokens, decoder layers)."""


def arm(name: str, budget: Budget, shape: Shape, num_layers: int, batch: int) -> Arm:
    """A method at a budget, for a batch of this shape.

    Raises:
        UsageError: there is no such method, or it cannot have this budget.
    """
    if name not in METHODS:
        raise UsageError(f"bench prune: unknown method {name!r}{nearest(name, list(METHODS), 'methods')}")
    total = shape.visual_tokens
    tokens = None if budget == REGIONS else count_of(budget, shape)
    method = METHODS[name](tokens or total, total, num_layers)
    if not method.needs_request:
        if tokens is None:
            raise UsageError(f"bench prune: {name} has no regions: give it a number of tokens, not {REGIONS!r}")
        return Arm(name, budget, tokens, method)
    rows, columns = shape.grid
    grid, rng = TokenGrid.stretched(rows, columns, columns, rows), random.Random(0)
    regions = [_region(rng) for _ in range(batch)]
    return Arm(name, budget, tokens, method, [keep_mask(region, grid, tokens) for region in regions])


def count_of(budget: Budget, shape: Shape) -> int:
    """Tokens of a budget: the count, or the share of the shape's visual tokens.

    Raises:
        UsageError: it is no count or share, or above what the shape has.
    """
    total = shape.visual_tokens
    if isinstance(budget, float) and 0 < budget <= 1:
        return max(1, round(budget * total))
    if isinstance(budget, int) and not isinstance(budget, bool) and 1 <= budget <= total:
        return budget
    raise UsageError(
        f"bench prune: budget {budget!r}: {shape.name} has {total} visual tokens, give a count from 1 to {total} or a "
        "share in (0, 1]"
    )


def prompts(vlm: VLM, shape: Shape, batch: int) -> VLMInputs:
    """A batch of random questions of equal length, half of the text behind the picture, the picture encoded already."""
    rows, columns = shape.grid
    before = shape.text_tokens // 2
    generator = torch.Generator().manual_seed(0)
    ids_BS = torch.randint(5, 1000, (batch, shape.text_tokens + shape.visual_tokens), generator=generator)
    ids_BS[:, before : before + shape.visual_tokens] = vlm.image_token_id
    ids_BS = ids_BS.to(vlm.device)
    width = vlm.decoder.config.hidden_size
    features = torch.randn(batch, shape.visual_tokens, width, generator=generator).to(vlm.device, vlm.model.dtype)
    tensors: dict[str, Any] = {
        "input_ids": ids_BS,
        "attention_mask": torch.ones_like(ids_BS),
        "mm_encoder_outputs": as_encoder_output(list(features)),
    }
    if vlm.model.config.model_type != "llava":
        tensors["mm_token_type_ids"] = vlm.visual_mask(ids_BS).int()
        patches = torch.tensor([[1, *shape.patches(vlm.model.config)]], device=vlm.device)
        tensors["image_grid_thw"] = patches.expand(batch, -1)
    return VLMInputs(tensors, [TokenGrid.stretched(rows, columns, columns, rows)] * batch)


def pictures(vlm: VLM, shape: Shape, batch: int) -> tuple[list[Tensor], list[tuple[int, int]]]:
    """Random pixels of every crop of a batch, and their patches, as `VLM.encode_prepared` takes them."""
    config = vlm.model.config
    rows, columns = shape.patches(config)
    vision = config.vision_config
    if config.model_type == "llava":
        size: Sequence[int] = (3, vision.image_size, vision.image_size)
    else:
        size = (rows * columns, vision.in_channels * vision.temporal_patch_size * vision.patch_size**2)
    generator = torch.Generator().manual_seed(0)
    pixels = [torch.randn(*size, generator=generator).to(vlm.device, vlm.model.dtype) for _ in range(shape.crops)]
    return pixels * batch, [(rows, columns)] * (shape.crops * batch)


def _region(rng: random.Random) -> Region:
    """Any rectangle whose corners are drawn independently."""
    x, y = (sorted(rng.choices(range(GRID), k=2)) for _ in range(2))
    return Region(x[0], y[0], x[1], y[1])
