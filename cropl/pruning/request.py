"""The caller's wish, as a mask: regions (with image sizes or token grids) or `keep`, one entry per row.

`generate` repeats rows for beams and return sequences, so entry i stands for rows / len(entries) consecutive rows.

Shapes: B rows, S positions, V visual tokens of one row.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cropl.budget import per_image
from cropl.grid import Region, TokenGrid
from cropl.models.placement import region_span
from cropl.models.vlm import VLM

Keep = Tensor | Sequence[Tensor | None]
Places = Sequence[tuple[TokenGrid, Region] | None]


class Request:
    """Checks and holds what `pruned` was given.

    Args:
        regions: one region per row; None for a row that keeps everything.
        image_sizes: `(width, height)` per region; images count as square without.
        grids: the token grid per region, instead of image sizes.
        keep: bool BV, or one bool `(V_i,)` per row (None keeps everything), instead of regions.
    """

    def __init__(
        self,
        regions: Sequence[Region | None] | None,
        image_sizes: Sequence[tuple[int, int]] | None,
        grids: Sequence[TokenGrid] | None,
        keep: Keep | None,
    ) -> None:
        if regions is not None and keep is not None:
            raise ValueError("give either regions or keep, not both")
        if regions is None and (image_sizes is not None or grids is not None):
            raise ValueError("image_sizes and grids say where regions lie: give regions with them")
        if image_sizes is not None and grids is not None:
            raise ValueError("give either image_sizes or grids, not both")
        if isinstance(regions, Region):
            raise ValueError("regions must be a list with one region per row, not a single Region")
        for name, given in (("image_sizes", image_sizes), ("grids", grids)):
            if regions is not None and given is not None and len(given) != len(regions):
                raise ValueError(f"{len(given)} {name} for {len(regions)} regions: give one per region")
        entries: Sequence[Any] | Tensor | None = regions if regions is not None else keep
        if entries is not None and len(entries) == 0:
            raise ValueError("regions (or keep) is empty: give one entry per row")
        self.regions = None if regions is None else list(regions)
        self.image_sizes = None if image_sizes is None else list(image_sizes)
        self.grids = None if grids is None else list(grids)
        self.keep = None if keep is None else [None if mask is None else _bool(mask) for mask in keep]

    def __bool__(self) -> bool:
        return self.regions is not None or self.keep is not None

    def mask(self, vlm: VLM, visual_BS: Tensor, counts: list[int], tensors: Mapping[str, Any]) -> Tensor | None:
        """Bool BS, False on the visual tokens that the request leaves out; None if nothing was requested.

        Args:
            vlm: knows the token grid of an image.
            visual_BS: bool, the visual tokens.
            counts: row sums of `visual_BS`.
            tensors: the keyword arguments of the forward.

        Raises:
            ValueError: rows, entries and token counts do not fit together.
        """
        if not self:
            return None
        masks = self._from_regions(vlm, tensors) if self.keep is None else self.keep
        rows = len(counts)
        if rows % len(masks):
            raise ValueError(f"{len(masks)} regions (or keep masks) for {rows} rows: give one per row")
        flat = [_row(masks[row * len(masks) // rows], count, row) for row, count in enumerate(counts)]
        requested_BS = torch.ones_like(visual_BS)
        requested_BS[visual_BS] = torch.cat(flat).to(visual_BS.device)
        return requested_BS

    def places(self, vlm: VLM, counts: list[int], tensors: Mapping[str, Any]) -> Places:
        """Token grid and region of each row, None where it has no image or no region; whole images without regions.

        Raises:
            ValueError: `keep` was given, or rows, regions and token counts do not fit together.
        """
        if self.keep is not None:
            raise ValueError("this method compresses whole images or by regions: give regions, not keep")
        regions = [Region.full()] * len(counts) if self.regions is None else self.regions
        if len(counts) % len(regions):
            raise ValueError(f"{len(regions)} regions for {len(counts)} rows: give one per row")
        grids = self._grids(vlm, len(regions), tensors)
        repeat = len(counts) // len(regions)
        found: list[tuple[TokenGrid, Region] | None] = []
        for row, count in enumerate(counts):
            region, grid = regions[row // repeat], grids[row // repeat]
            if region is not None and count and grid.num_tokens != count:
                raise ValueError(f"row {row} has {count} visual tokens, and its token grid {grid.num_tokens}")
            found.append(None if region is None or not count else (grid, region))
        return found

    def _grids(self, vlm: VLM, count: int, tensors: Mapping[str, Any]) -> list[TokenGrid]:
        if self.grids is not None:
            return self.grids
        return vlm.token_grids(self.image_sizes or [(1, 1)] * count, tensors)

    def _from_regions(self, vlm: VLM, tensors: Mapping[str, Any]) -> list[Tensor | None]:
        assert self.regions is not None
        return [
            None if region is None else region_mask(region, grid)
            for region, grid in zip(self.regions, self._grids(vlm, len(self.regions), tensors), strict=True)
        ]


def region_mask(region: Region, grid: TokenGrid) -> Tensor:
    """Bool `(V,)`, row-major: the tokens whose cell overlaps the region.

    The full region keeps every token, the padding too (see `region_span`): it must be the unpruned model.
    """
    r0, r1, c0, c1 = region_span(region, grid)
    mask = torch.zeros(grid.rows, grid.cols, dtype=torch.bool)
    mask[r0:r1, c0:c1] = True
    return mask.flatten()


def keep_mask(region: Region, grid: TokenGrid, budget: int | float | None = None) -> Tensor:
    """Bool `(V,)`: what one image keeps: exactly `budget` tokens, grown from the region, or the region's own for None.

    Raises:
        ValueError: the budget is 0 or above the token count.
    """
    return region_mask(region, grid) if budget is None else per_image(region, grid, budget)


def _bool(mask: Tensor) -> Tensor:
    if not isinstance(mask, Tensor) or mask.dtype != torch.bool or mask.ndim != 1:
        raise ValueError("keep must be a bool tensor of shape (rows, visual tokens), or one bool vector per row")
    return mask.cpu()


def _row(mask: Tensor | None, count: int, row: int) -> Tensor:
    """The mask of a row with `count` visual tokens; text-only rows keep everything."""
    if mask is None or count == 0:
        return torch.ones(count, dtype=torch.bool)
    if len(mask) != count:
        raise ValueError(
            f"row {row} has {count} visual tokens, but its region (or keep mask) covers {len(mask)}: one image per row "
            "is supported with regions, in one prefill (no prefill_chunk_size); with several images give keep"
        )
    if not mask.any():
        raise ValueError(f"row {row} would keep no visual token at all: keep at least one")
    return mask
