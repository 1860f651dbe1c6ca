"""The pictures and the geometry of LLaVA-NeXT: which resolution suits an image, its crops, and where its tokens lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from transformers.image_processing_utils import get_patch_output_size, select_best_resolution
from transformers.image_utils import ChannelDimension
from transformers.models.llava_next.modeling_llava_next import unpad_image

from cropl.data.collate import Prepared
from cropl.grid import TokenGrid
from cropl.tiling import TileGrid, TokenMap

# P crops of an image (the whole view first)

Protocol = Literal["anyres", "fixed"]
"""See `cropl.models.llava_next`."""
Pinpoints = tuple[tuple[int, int], ...]
"""(height, width) of resolutions to choose from, in pixels."""


@lru_cache(maxsize=4096)
def token_map(width: int, height: int, pinpoints: Pinpoints, tile: int, patch: int, unpad: bool = True) -> TokenMap:
    """Where LLaVA-NeXT's tokens lie over an image: the whole view, squashed to a tile, then the grid of the tiles.

    Resizing and unpadding round as `transformers` does, by calling it.

    Args:
        width, height: of the displayed image in pixels.
        pinpoints: (height, width) of the resolutions to choose from.
        tile: side of a tile in pixels.
        patch: side of a token in a tile.
        unpad: cut rows or columns of padding away, and put a newline behind each row.
    """
    side = tile // patch
    base = TokenGrid.stretched(side, side, width, height)
    best = select_best_resolution((height, width), list(pinpoints))
    shape = np.broadcast_to(np.uint8(0), (3, height, width))
    new_height, new_width = get_patch_output_size(shape, best, ChannelDimension.FIRST)
    left, top = -((best[1] - new_width) // 2), -((best[0] - new_height) // 2)
    rows, cols, crops = best[0] // patch, best[1] // patch, 1 + best[0] // tile * (best[1] // tile)
    if unpad:
        kept_rows, kept_cols = unpad_image(torch.empty(1, rows, cols, device="meta"), (height, width)).shape[1:]
        top, left = top + (rows - kept_rows) // 2 * patch, left + (cols - kept_cols) // 2 * patch
        rows, cols = kept_rows, kept_cols
    if not rows:  # of a very wide image, unpadding leaves nothing but the whole view
        return TokenMap((base,), width, height, crops)
    if not cols:  # and of a very tall one also the newlines, each of which then stands for its row
        newlines = TileGrid(rows, 1, 0, top, new_width, rows * patch, new_width, new_height)
        return TokenMap((base, newlines), width, height, crops)
    tiles = TileGrid(
        rows, cols, left, top, cols * patch, rows * patch, new_width, new_height, newline=unpad
    )  # fmt: skip
    return TokenMap((base, tiles), width, height, crops)


@dataclass(frozen=True)
class Crops:
    """Prepares pictures for LLaVA-NeXT's tower: the whole view and the tiles of each.

    Attributes:
        image_processor: the checkpoint's.
        pinpoints: (height, width) of the resolutions to choose from.
        tile, patch: sides of a tile and of a token, in pixels.
        protocol: `anyres` or `fixed`.
    """

    image_processor: Any
    pinpoints: Pinpoints
    tile: int
    patch: int
    protocol: Protocol

    def __call__(self, image: Image.Image) -> Prepared:
        pixels = self.pixels([image], do_rescale=False, do_normalize=False)[0].round().clamp(0, 255).to(torch.uint8)
        tokens = token_map(*image.size, self.pinpoints, self.tile, self.patch, unpad=self.protocol == "anyres")
        return Prepared(pixels, (image.height, image.width), tokens)

    def pixels(self, images: Sequence[Image.Image], **options: bool) -> list[Tensor]:
        """Crops (P, 3, tile, tile) of each image, normalised unless `options` of the image processor say else.

        Raises:
            ValueError: the image processor makes tiles of another size than the model's.
        """
        made = []
        for image in images:  # each alone: a batch would be padded to the most crops
            crops_PCHW: Tensor = self.image_processor(
                images=image.convert("RGB"), image_grid_pinpoints=[list(one) for one in self.pinpoints],
                return_tensors="pt", **options,
            )["pixel_values"][0]  # fmt: skip
            if crops_PCHW.shape[-2:] != (self.tile, self.tile):
                raise ValueError(
                    f"the image processor makes tiles of {tuple(crops_PCHW.shape[-2:])} pixels, and the model takes "
                    f"{self.tile}: load both from the same checkpoint"
                )
            made.append(crops_PCHW)
        return made
