"""Where regions and anchor windows lie on token grids of different shapes, as tensors over a batch.

Legend: B images, V visual tokens (padded to the largest grid), R anchor tokens, N regions of a union.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cropl.grid import Region, TokenGrid
from cropl.tiling import Regions, Tokens, members

WINDOW = 8
"""Side of the anchor window in tokens: the paper's 8 x 8 patch, N_r = 64."""


def plain(tokens: Tokens) -> TokenGrid:
    """The tokens as one grid, row by row, the only thing that rows, columns and windows can be counted on.

    Raises:
        ValueError: they lie on several grids, or are listed in another order.
    """
    if type(tokens) is not TokenGrid:
        raise ValueError(
            "PLC compresses one plain grid of visual tokens, and this model has several (a whole view and tiles): "
            "use a method that drops tokens, such as ILP, or a model of LLaVA-1.5 or Qwen2-VL"
        )
    return tokens


def region_span(region: Region, grid: TokenGrid) -> tuple[int, int, int, int]:
    """Half-open token ranges ``(r0, r1, c0, c1)`` of a region.

    The full region is every token, the padding too: it is what "nothing is known" falls back to.
    """
    return (0, grid.rows, 0, grid.cols) if region == Region.full() else grid.span(region)


def union_spans(regions: Regions, grid: TokenGrid, count: int) -> list[tuple[int, int, int, int]]:
    """The span of a union's enclosing rectangle, then those of its members, the last repeated up to ``count``."""
    spans = [region_span(region, grid) for region in members(regions)]
    r0, r1, c0, c1 = zip(*spans)
    return [(min(r0), max(r1), min(c0), max(c1)), *spans, *[spans[-1]] * (count - len(spans))]


@dataclass(frozen=True)
class Placement:
    """A batch of regions on token grids.

    Attributes:
        row_BV, col_BV: row and column of each token, 0-based.
        inside_BV: bool, the tokens of the region.
        outside_BV: bool, the others; all tokens where there is no other.
        anchor_BR: indices of the 8 x 8 tokens around the midpoint of the region (of a union: of the rectangle around
            it), the window shifted inside the grid. The midpoint between two tokens counts as the upper or left one.
        real_BR: bool, False on slots that a grid of fewer than 8 rows or columns does not have.
        anchors: how many slots are real, per image.
    """

    row_BV: Tensor
    col_BV: Tensor
    inside_BV: Tensor
    outside_BV: Tensor
    anchor_BR: Tensor
    real_BR: Tensor
    anchors: list[int]

    def anchors_and(self, others: int) -> list[int]:
        """The number of anchors of each image, plus a number of other tokens."""
        return [count + others for count in self.anchors]

    @classmethod
    def of(cls, tokens: Sequence[Tokens], regions: Sequence[Regions], device: torch.device | str) -> Placement:
        """Place each region, or union of regions, on its grid.

        Raises:
            ValueError: the tokens of an image are no plain grid.
        """
        grids, most = [plain(one) for one in tokens], max(len(members(one)) for one in regions)
        spans = torch.tensor([union_spans(one, g, most) for g, one in zip(grids, regions, strict=True)], device=device)
        r0_BN1, r1_BN1, c0_BN1, c1_BN1 = spans[:, 1:].permute(2, 0, 1)[..., None]
        r0_B1, r1_B1, c0_B1, c1_B1 = spans[:, 0].T[..., None]
        rows_B1, cols_B1 = torch.tensor([(g.rows, g.cols) for g in grids], device=device).T[..., None]
        number_V = torch.arange(max(grid.num_tokens for grid in grids), device=device)
        real_BV = number_V < rows_B1 * cols_B1
        row_BV = torch.div(number_V, cols_B1, rounding_mode="floor")
        col_BV = number_V % cols_B1
        row_B1V, col_B1V = row_BV[:, None], col_BV[:, None]
        inside_BNV = (row_B1V >= r0_BN1) & (row_B1V < r1_BN1) & (col_B1V >= c0_BN1) & (col_B1V < c1_BN1)
        inside_BV = real_BV & inside_BNV.any(1)
        outside_BV = real_BV & ~inside_BV
        outside_BV = torch.where(outside_BV.any(1, keepdim=True), outside_BV, real_BV)

        slot_R = torch.arange(WINDOW * WINDOW, device=device)
        down_R, right_R = torch.div(slot_R, WINDOW, rounding_mode="floor"), slot_R % WINDOW
        height_B1, width_B1 = rows_B1.clamp(max=WINDOW), cols_B1.clamp(max=WINDOW)
        top_B1 = _start(r0_B1, r1_B1, height_B1, rows_B1)
        left_B1 = _start(c0_B1, c1_B1, width_B1, cols_B1)
        real_BR = (down_R < height_B1) & (right_R < width_B1)
        anchor_BR = ((top_B1 + down_R) * cols_B1 + left_B1 + right_R).masked_fill(~real_BR, 0)
        anchors = [min(WINDOW, grid.rows) * min(WINDOW, grid.cols) for grid in grids]
        return cls(row_BV, col_BV, inside_BV, outside_BV, anchor_BR, real_BR, anchors)


def _start(first: Tensor, end: Tensor, size: Tensor, count: Tensor) -> Tensor:
    """Where a window of ``size`` tokens starts that is centred on tokens ``first`` to ``end``, inside 0..``count``."""
    centred = torch.div(first + end - size, 2, rounding_mode="floor")
    return torch.minimum(centred.clamp(min=0), count - size)
