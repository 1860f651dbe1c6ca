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
from cropl.grid import Region
from cropl.models.vlm import VLM
from cropl.tiling import Regions, Tokens, covered, members

Keep = Tensor | Sequence[Tensor | None]
Places = Sequence[tuple[Tokens, Regions] | None]


class Request:
    """Checks and holds what `pruned` was given.

    Args:
        regions: one entry per row: a region, a sequence of regions for their union, or None to keep everything.
        image_sizes: `(width, height)` per entry; images count as square without.
        grids: the token grid or map per entry, instead of image sizes.
        keep: bool BV, or one bool `(V_i,)` per row (None keeps everything), instead of regions.
    """

    def __init__(
        self,
        regions: Sequence[Regions | None] | None,
        image_sizes: Sequence[tuple[int, int]] | None,
        grids: Sequence[Tokens] | None,
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
        self.regions = None if regions is None else [None if one is None else _one_or_union(one) for one in regions]
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
        found: list[tuple[Tokens, Regions] | None] = []
        for row, count in enumerate(counts):
            region, grid = regions[row // repeat], grids[row // repeat]
            if region is not None and count and grid.num_tokens != count:
                raise ValueError(f"row {row} has {count} visual tokens, and its token grid {grid.num_tokens}")
            found.append(None if region is None or not count else (grid, region))
        return found

    def _grids(self, vlm: VLM, count: int, tensors: Mapping[str, Any]) -> Sequence[Tokens]:
        if self.grids is not None:
            return self.grids
        return vlm.token_grids(self.image_sizes or [(1, 1)] * count, tensors)

    def _from_regions(self, vlm: VLM, tensors: Mapping[str, Any]) -> list[Tensor | None]:
        assert self.regions is not None
        return [
            None if region is None else region_mask(region, grid)
            for region, grid in zip(self.regions, self._grids(vlm, len(self.regions), tensors), strict=True)
        ]


def region_mask(region: Regions, grid: Tokens) -> Tensor:
    """Bool `(V,)`, in the model's order: the tokens whose cell overlaps the region, or any of a union.

    The full region keeps every token, the padding too: it must be the unpruned model.
    """
    return torch.tensor(covered(grid, region))


def keep_mask(region: Regions, grid: Tokens, budget: int | float | None = None) -> Tensor:
    """Bool `(V,)`: what one image keeps: exactly `budget` tokens, grown from the region, or the region's own for None.

    Raises:
        ValueError: the budget is 0 or above the token count.
    """
    return region_mask(region, grid) if budget is None else per_image(region, grid, budget)


def _one_or_union(regions: Regions) -> Regions:
    found = members(regions)
    return found[0] if len(found) == 1 else found


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
            f"row {row} has {count} visual tokens, but its region (or keep mask) covers {len(mask)}: give grids or "
            "image_sizes, one per image, where tokens follow the image's shape; one image per row is supported with "
            "regions, in one prefill (no prefill_chunk_size); with several images give keep"
        )
    if not mask.any():
        raise ValueError(f"row {row} would keep no visual token at all: keep at least one")
    return mask
