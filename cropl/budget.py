"""Token budgets: what "N tokens" means, and which tokens regions keep to meet it.

The paper reports averages of 192/128/64 tokens without saying how they are met. Here one scale factor multiplies every
region about its centre (grown or shrunk, clamped to the image, at the granularity of tokens), chosen on the whole set
so that the mean number of kept tokens is the target. `TokenGrid.reach` turns this into sorting: a token is kept at
factor f exactly if its reach is below f, so the factor is read off the sorted reaches and nothing is bisected. Where
many tokens share one reach (equal regions), the group is split by distance to the region's centre, then by index.
A union of regions scales each about its own centre, and takes of each token the least reach and the least distance.
Newline tokens count, and have the least reach and distance of their row (`cropl.tiling`): a factor keeps exactly those
whose row keeps a token, and where a group is split, at most one of an image is left out behind the last of its row.

Meanings: `post_prune` counts the tokens that are left after pruning; `layer_average` averages over the decoder layers,
of which the first K see every token. An integer counts tokens; a float in (0, 1] is a share of each image's own tokens.

Shapes: V visual tokens of one image, A visual tokens of all images of the set, one after the other.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from cropl import tiling
from cropl.tiling import Regions, Tokens, newlines

Meaning = Literal["post_prune", "layer_average"]
FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


class InfeasibleBudget(ValueError):
    """No set of kept tokens has this budget: for example a layer average below what the K full layers cost alone."""


@dataclass(frozen=True)
class Budgeted:
    """The masks that meet a budget, and how well they do.

    Attributes:
        keep: one bool tensor (V_i,) per image.
        factor: the scale factor of the set, for `apply_factor` on further images.
        target: the mean number of kept tokens that was asked for, after pruning.
        residual: mean kept minus target.
        mean, min, max: kept tokens per image.
        tied: tokens of the group of equal reach that was split, 0 if none was.
        padding: kept tokens that lie wholly in padding, because the image has not enough tokens of its own.
        meaning: `post_prune` or `layer_average`.
        budget: the budget as given.
    """

    keep: list[Tensor] = field(repr=False)
    factor: float
    target: float
    residual: float
    mean: float
    min: int
    max: int
    tied: int
    padding: int
    meaning: Meaning
    budget: int | float

    def as_row(self) -> dict[str, Any]:
        """Everything but the masks, ready for JSON."""
        return {name: value for name, value in vars(self).items() if name != "keep"}


def layer_average(kept: float, total: float, layer: int, num_layers: int) -> float:
    """Tokens per decoder layer if `layer` layers see `total` visual tokens and the others `kept`.

    Raises:
        ValueError: `layer` is not in 0..num_layers.
    """
    _check_layer(layer, num_layers)
    return (layer * total + (num_layers - layer) * kept) / num_layers


def kept_for_layer_average(average: float, total: float, layer: int, num_layers: int) -> float:
    """The inverse of `layer_average`: tokens to keep after pruning so that the layers average `average`.

    Raises:
        InfeasibleBudget: the `layer` full layers alone cost more, or no layer prunes and `average != total`.
        ValueError: `layer` is not in 0..num_layers.
    """
    _check_layer(layer, num_layers)
    if layer == num_layers:
        if not math.isclose(average, total):
            raise InfeasibleBudget(f"layer average {average:g}: no layer prunes at K = L = {layer}, it is {total:g}")
        return total
    kept = (num_layers * average - layer * total) / (num_layers - layer)
    if kept <= 0:
        raise InfeasibleBudget(
            f"layer average {average:g} is infeasible: {layer} of {num_layers} layers see all {total:g} tokens, which "
            f"costs {layer * total / num_layers:g} on its own; lower the layer or raise the budget"
        )
    return kept


def calibrate(
    regions: Sequence[Regions],
    grids: Sequence[Tokens],
    budget: int | float,
    meaning: Meaning = "post_prune",
    layer: int | None = None,
    num_layers: int | None = None,
) -> Budgeted:
    """Keep masks for a set of images whose mean is within one token of the budget, from one common scale factor.

    Every image keeps at least one token, nearest to its region's centre. A budget that needs more than the tokens over
    the images takes padding tokens, nearest first, and counts them in `padding`.

    Example (64 tokens of 576 on average: few of the small region's image, more of the large one's):
        >>> from cropl import Region, TokenGrid
        >>> regions = [Region(3, 3, 4, 4), Region(0, 0, 5, 7)]
        >>> found = calibrate(regions, [TokenGrid.stretched(24, 24, 336, 336)] * 2, 64)
        >>> [int(keep_V.sum()) for keep_V in found.keep], found.mean
        ([16, 112], 64.0)

    Args:
        regions: one region, or union of regions, per image.
        grids: one token grid or map per image.
        budget: tokens (int), or a share of each image's own tokens (float in (0, 1]).
        meaning: what is averaged, see the module.
        layer: K, the number of decoder layers that see every token (only for `layer_average`).
        num_layers: L (only for `layer_average`).

    Raises:
        InfeasibleBudget: nothing meets the budget.
        ValueError: the budget is 0 or above the token count, or the arguments do not fit together.
    """
    if len(regions) != len(grids) or not regions:
        raise ValueError(f"calibrate needs one grid per region, and at least one: {len(regions)} and {len(grids)}")
    sizes = [grid.num_tokens for grid in grids]
    target = _target(budget, sum(sizes) / len(sizes), meaning, layer, num_layers)
    reach_A = np.concatenate([_reach(region, grid, clamp=True) for region, grid in zip(regions, grids, strict=True)])
    wanted = math.floor(target * len(sizes) + 0.5)

    # The kept counts that a factor f > 0 can produce: for each distinct reach, the tokens up to it.
    finite_A = np.sort(reach_A[np.isfinite(reach_A)])
    distinct, multiplicity = np.unique(finite_A, return_counts=True)
    possible = multiplicity.cumsum()[int((distinct <= 0).sum()) - 1 :]
    kept = int(possible[int(np.abs(possible - wanted).argmin())])
    if wanted < len(reach_A) and abs(kept / len(sizes) - target) <= 1:
        # Any factor up to the next reach keeps the same tokens; past the last one, the next float does.
        factor = float(finite_A[kept]) if kept < len(finite_A) else _above(float(finite_A[-1]))
        keep_A, tied = reach_A < factor, 0
    else:
        keep_A, factor, tied = _split_ties(regions, grids, reach_A, wanted)
    keep = list(torch.split(torch.from_numpy(keep_A), sizes))
    counts = [int(mask.sum()) for mask in keep]
    mean = sum(counts) / len(counts)
    return Budgeted(
        keep=keep,
        factor=factor,
        target=target,
        residual=mean - target,
        mean=mean,
        min=min(counts),
        max=max(counts),
        tied=tied,
        padding=int((keep_A & np.isinf(reach_A)).sum()),
        meaning=meaning,
        budget=budget,
    )


def per_image(region: Regions, grid: Tokens, budget: int | float) -> Tensor:
    """Exactly the budget for one image (V,): the tokens that a growing rectangle reaches first.

    Example:
        >>> from cropl import Region, TokenGrid
        >>> keep_V = per_image(Region(0, 0, 3, 3), TokenGrid.stretched(4, 4, 64, 64), 6)
        >>> keep_V.reshape(4, 4).int().tolist()
        [[1, 1, 1, 0], [1, 1, 1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]

    Raises:
        ValueError: the budget is 0 or above the token count.
    """
    wanted = math.floor(_target(budget, grid.num_tokens, "post_prune", None, None) + 0.5)
    keep_V = torch.zeros(grid.num_tokens, dtype=torch.bool)
    keep_V[torch.from_numpy(_ranking(region, grid)[:wanted])] = True
    return keep_V


def apply_factor(region: Regions, grid: Tokens, factor: float) -> Tensor:
    """The tokens (V,) that overlap the region scaled by `factor` about its centre; 1.0 keeps exactly the region.

    Raises:
        ValueError: the factor is not a positive finite number.
    """
    check_factor(factor)
    return torch.from_numpy(_reach(region, grid, clamp=True) < factor)


def check_factor(factor: float) -> None:
    """ValueError unless it is a positive finite number."""
    if isinstance(factor, bool) or not isinstance(factor, Real) or not (math.isfinite(factor) and factor > 0):
        raise ValueError(f"scale factor {factor!r}: must be a positive finite number")


def _check_layer(layer: int, num_layers: int) -> None:
    if not 0 <= layer <= num_layers or num_layers < 1:
        raise ValueError(f"layer {layer} is outside 0..{num_layers} (the number of decoder layers)")


def _target(budget: int | float, total: float, meaning: Meaning, layer: int | None, num_layers: int | None) -> float:
    """Mean tokens to keep after pruning, for images of `total` tokens on average."""
    if isinstance(budget, bool) or not isinstance(budget, int | float):
        raise ValueError(f"budget {budget!r}: give a number of tokens (int) or a share in (0, 1] (float)")
    if isinstance(budget, float) and not 0 < budget <= 1:
        raise ValueError(f"budget {budget!r}: a share of the tokens must be in (0, 1]; write a count as an integer")
    if isinstance(budget, int) and not 1 <= budget <= total:
        raise ValueError(f"budget {budget}: must be from 1 to {total:g}, the visual tokens of an image")
    tokens = budget * total if isinstance(budget, float) else float(budget)
    if meaning == "layer_average":
        if layer is None or num_layers is None:
            raise ValueError("meaning 'layer_average' needs layer (K) and num_layers (L)")
        tokens = kept_for_layer_average(tokens, total, layer, num_layers)
    elif meaning != "post_prune":
        raise ValueError(f"budget meaning {meaning!r}: must be 'post_prune' or 'layer_average'")
    if tokens < 1:
        raise InfeasibleBudget(f"budget {budget!r} leaves {tokens:.3g} tokens per image after pruning: at least 1")
    return tokens


def _reach(regions: Regions, tokens: Tokens, clamp: bool) -> FloatArray:
    """`tiling.reach` as an array (V,); without `clamp`, tokens in the padding are finite too."""
    return np.array(tiling.reach(tokens, regions, clamp))


def _distance(regions: Regions, tokens: Tokens) -> FloatArray:
    """`tiling.distance` as an array (V,)."""
    return np.array(tiling.distance(tokens, regions))


def _keys(regions: Regions, tokens: Tokens) -> tuple[FloatArray, FloatArray, FloatArray]:
    """What orders tokens, the last counting most: distance, reach with the padding's, reach.

    A newline has the keys of the token of its row that comes first, so that it never comes before that one.
    """
    clear, clamped = _reach(regions, tokens, clamp=False), _reach(regions, tokens, clamp=True)
    distance = _distance(regions, tokens)
    for newline, row in newlines(tokens):
        first = row[int(np.lexsort((distance[row], clear[row], clamped[row]))[0])]
        clear[newline], distance[newline] = clear[first], distance[first]
    return distance, clear, clamped


def _ranking(regions: Regions, tokens: Tokens) -> IntArray:
    """Token indices in the order in which one image takes them: reach, padding last, distance, index."""
    return np.lexsort(_keys(regions, tokens))  # ties stay in index order


def _split_ties(
    regions: Sequence[Regions], grids: Sequence[Tokens], reach_A: FloatArray, wanted: int
) -> tuple[BoolArray, float, int]:
    """Keep exactly `wanted` tokens (mask (A,)), taking part of one group of equal reach."""
    firsts, clear, distance, token = [], [], [], []
    start = 0
    for region, grid in zip(regions, grids, strict=True):
        firsts.append(start + int(_ranking(region, grid)[0]))
        keys = _keys(region, grid)
        distance.append(keys[0])
        clear.append(keys[1])
        token.append(np.arange(grid.num_tokens))
        start += grid.num_tokens
    later = np.ones(start, dtype=np.int8)
    later[firsts] = 0  # no image goes without a token
    # Token before image: of equal tokens in equal images, every image gets the first before any gets the second.
    order = np.lexsort((np.concatenate(token), np.concatenate(distance), np.concatenate(clear), reach_A, later))
    keep_A = np.zeros(start, dtype=bool)
    keep_A[order[:wanted]] = True
    edge = float(reach_A[order[wanted - 1]])
    tied = int((reach_A == edge).sum())
    if math.isinf(edge):  # every token over an image is kept, and some padding
        return keep_A, _above(float(reach_A[np.isfinite(reach_A)].max())), tied
    # At a reach of 0 or below only centres are kept: the smallest factor stands for "the centre alone".
    return keep_A, max(edge, math.ulp(0.0)), tied


def _above(value: float) -> float:
    """The least factor above a reach: where even the farthest one is below 0, the least factor that there is."""
    return max(math.nextafter(value, math.inf), math.ulp(0.0))
