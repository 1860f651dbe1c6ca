"""What pruning is measured on: random prompts of a shape's lengths, and methods set to a budget.

Which tokens stay follows from random weights and means nothing; how many, and where, cost what they do in earnest.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from cropl.bench.prune.methods import METHODS, Method
from cropl.bench.prune.shapes import Shape
from cropl.budget import InfeasibleBudget
from cropl.errors import UsageError, nearest
from cropl.grid import GRID, Region, TokenGrid
from cropl.models.inputs import VLMInputs, as_encoder_output
from cropl.models.vlm import VLM
from cropl.pruning import ILP, InnerLLM, PreLLM, TowerMethod, keep_mask

REGIONS = "regions"
"""The budget "as the regions come": another count in every row."""

Budget = int | float | str


@dataclass(frozen=True)
class Arm:
    """A method at a budget.

    Attributes:
        name: of the method, one of `METHODS`.
        budget: as it was asked for; of a method whose number of tokens is its own, that number.
        tokens: that budget as a count; None for `REGIONS`.
        method: for `pruned`; None where there is none with this budget.
        request: what else `pruned` is given, for methods that want regions.
        infeasible: why there is no method.
    """

    name: str
    budget: Budget
    tokens: int | None
    method: Method | None
    request: dict[str, Any] = field(default_factory=dict)
    infeasible: str | None = None

    @property
    def meaning(self) -> str:
        """What the budget counts, one of `MEANINGS`."""
        return METHODS[self.name].meaning

    @property
    def regional(self) -> bool:
        """Whether a localizer has to go first."""
        return bool(self.request)

    @property
    def looks(self) -> bool:
        """Whether the vision tower has to run where the method sees it."""
        return isinstance(self.method, TowerMethod)

    @property
    def layers(self) -> tuple[int, ...]:
        """Decoder layers before which tokens go."""
        return self.method.layers if isinstance(self.method, InnerLLM) else (0,) if self.method else ()


def arm(name: str, budget: Budget, shape: Shape, num_layers: int, batch: int) -> Arm:
    """A method at a budget, for a batch of this shape.

    Raises:
        UsageError: there is no such method, or it cannot have this budget.
    """
    if name not in METHODS:
        raise UsageError(f"bench prune: unknown method {name!r}{nearest(name, list(METHODS), 'methods')}")
    entry, total = METHODS[name], shape.visual_tokens
    tokens = None if budget == REGIONS else count_of(budget, shape)
    try:
        method = entry.make(tokens or total, shape, num_layers)
    except InfeasibleBudget as error:
        return Arm(name, budget, tokens, None, infeasible=f"infeasible: {error}")
    if tokens is None and not isinstance(method, ILP):
        raise UsageError(f"bench prune: {name} keeps a number of tokens: give it one, not {REGIONS!r}")
    rows, columns = shape.grid
    grid, rng = TokenGrid.stretched(rows, columns, columns, rows), random.Random(0)
    if entry.meaning == "own":
        budget = tokens = method.count(grid) if isinstance(method, PreLLM) else total
        if tokens > total:
            return Arm(name, budget, tokens, None, infeasible=f"infeasible: of {total} tokens")
    if not (method.needs_regions if isinstance(method, PreLLM) else method.needs_request):
        return Arm(name, budget, tokens, method)
    regions = [_region(rng) for _ in range(batch)]
    if isinstance(method, PreLLM):
        return Arm(name, budget, tokens, method, {"regions": regions, "grids": [grid] * batch})
    held = None if tokens is None else min(total, entry.region * tokens)
    return Arm(name, budget, tokens, method, {"keep": [keep_mask(region, grid, held) for region in regions]})


def count_of(budget: Budget, shape: Shape, key: str = "budget") -> int:
    """Tokens of a budget: the count, or the share of the shape's visual tokens. `key` is what errors call it.

    Raises:
        UsageError: it is no count or share, or above what the shape has.
    """
    total = shape.visual_tokens
    if isinstance(budget, float) and 0 < budget <= 1:
        return max(1, round(budget * total))
    if isinstance(budget, int) and not isinstance(budget, bool) and 1 <= budget <= total:
        return budget
    raise UsageError(
        f"bench prune: {key} {budget!r}: {shape.name} has {total} visual tokens, give a count from 1 to {total} or a "
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
