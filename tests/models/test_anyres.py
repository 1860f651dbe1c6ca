"""LLaVA-NeXT's token map against the published rules, the real processor's counts, and rendered rectangles."""

from __future__ import annotations

import math
from fractions import Fraction
from functools import lru_cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cropl.grid import Region
from cropl.models.anyres import token_map
from cropl.models.llava_next import LlavaNextVLM
from cropl.tiling import TileGrid, TokenMap, covered
from tests.reference.tiny_next import PATCH, PINPOINTS, TILE, next_images, next_processor
from tests.test_grid import regions
from tests.test_tiling import along

REAL = ((336, 672), (672, 336), (672, 672), (1008, 336), (336, 1008))
TINY = tuple((height, width) for height, width in PINPOINTS)
SIDE = TILE // PATCH
BOX = Image.Resampling.BOX


def published(width: int, height: int, region: Region, pinpoints=REAL, tile: int = 336, patch: int = 14) -> list[bool]:
    """The tokens of a region by the rules as they are written down: best resolution, padding, unpadding, newlines."""
    best, most, least = None, 0, math.inf
    for high, wide in pinpoints:
        scale = min(wide / width, high / height)
        useful = min(int(width * scale) * int(height * scale), width * height)
        if useful > most or (useful == most and high * wide - useful < least):
            best, most, least = (high, wide), useful, high * wide - useful
    high, wide = best
    if wide / width < high / height:
        new_width, new_height = wide, min(math.ceil(height * (wide / width)), high)
    else:
        new_width, new_height = min(math.ceil(width * (high / height)), wide), high
    rows, cols = high // patch, wide // patch
    if width / height > cols / rows:
        cut = (rows - int(round(height * (cols / width), 7))) // 2, 0
    else:
        cut = 0, (cols - int(round(width * (rows / height), 7))) // 2
    x0, y0, x1, y1 = region.edges()
    one, side = Fraction(1), tile // patch
    base = [[row and col for col in along(side, 0, 8, 8, x0, x1, one)] for row in along(side, 0, 8, 8, y0, y1, one)]
    left, top = (wide - new_width) // 2, (high - new_height) // 2
    # A border token answers for what was cut off beyond it: `along` reaches to the image's end.
    kept_rows, kept_cols = rows - 2 * cut[0], cols - 2 * cut[1]
    if not kept_rows:
        return sum(base, [])
    down = along(kept_rows, cut[0] * patch - top, kept_rows * patch, new_height, y0, y1, one)
    if not kept_cols:
        return sum(base, []) + down
    right = along(kept_cols, cut[1] * patch - left, kept_cols * patch, new_width, x0, x1, one)
    return sum(base, []) + [kept for row in down for kept in [*(row and col for col in right), row and any(right)]]


@lru_cache
def real_processor() -> Any:
    processor = next_processor()
    processor.image_processor.image_grid_pinpoints, processor.patch_size = [list(one) for one in REAL], 14
    return processor


@settings(max_examples=80, deadline=None)
@given(st.integers(1, 2000), st.integers(1, 2000), regions())
def test_the_map_is_the_published_one(width, height, region) -> None:
    tokens = token_map(width, height, REAL, 336, 14)
    kept = covered(tokens, region)
    if region != Region.full():
        assert kept == published(width, height, region)
    counted = real_processor()._get_number_of_features(height, width, 336, 336) - 1
    assert tokens.num_tokens == counted == len(kept)


@pytest.mark.parametrize(
    ("size", "total", "crops"),
    [((672, 672), 2928, 5), ((640, 480), 2340, 5), ((333, 500), 1476, 3), ((1000, 300), 2182, 4)],
)
def test_known_sizes(size, total, crops) -> None:
    tokens = token_map(*size, REAL, 336, 14)
    assert (tokens.num_tokens, tokens.crops) == (total, crops)
    assert token_map(*size, ((672, 672),), 336, 14, unpad=False).num_tokens == 2880


def test_the_most_tokens(anyres, fixed) -> None:
    sizes = [(width, height) for width in range(8, 200, 12) for height in range(8, 200, 12)]
    assert max(anyres.token_map(*size).num_tokens for size in sizes) == anyres.most_tokens == 64 + 16 * 17
    assert fixed.most_tokens == 5 * 64


def test_images_too_long_for_tiles() -> None:
    assert token_map(1000, 10, REAL, 336, 14).num_tokens == 576  # every row of tiles is padding, and is cut away
    tall = token_map(10, 1000, REAL, 336, 14)  # and of tall ones the newlines are left
    assert tall.num_tokens == 576 + 72
    assert sum(covered(tall, Region(0, 0, 7, 3))) == 576 / 2 + 36


def touched(vlm: LlavaNextVLM, width: int, height: int, pixels: tuple[int, int, int, int]) -> np.ndarray:
    """Visual tokens in which a rectangle shows that went through the processor and the model's own packing."""
    packed = []
    for colour in (0, 255):
        image = np.zeros((height, width, 3), dtype=np.uint8)
        x0, y0, x1, y1 = pixels
        image[y0:y1, x0:x1] = colour
        prepare = vlm.prepare
        images = next_images(resample=BOX, do_normalize=False)  # averages areas; bicubic would spill over edges
        crops_PCHW = type(prepare)(images, prepare.pinpoints, TILE, PATCH, vlm.protocol).pixels(
            [Image.fromarray(image)]
        )[0]
        patches = crops_PCHW[:, 0].unflatten(1, (SIDE, PATCH)).unflatten(3, (SIDE, PATCH))
        feature_PVD = patches.transpose(2, 3).flatten(3).flatten(1, 2)
        if vlm.protocol == "fixed":
            tiles = feature_PVD[1:].reshape(2, 2, SIDE, SIDE, -1)
            rows = torch.cat([torch.cat(list(line), dim=1) for line in tiles])
            packed.append(torch.cat([feature_PVD[0], rows.flatten(0, 1)]))
        else:
            newline = torch.zeros(feature_PVD.shape[-1])
            made, _ = vlm.model.pack_image_features([feature_PVD], [(height, width)], "default", newline)
            packed.append(made[0])
    return (packed[0] != packed[1]).any(-1).numpy()


def places(tokens: TokenMap) -> np.ndarray:
    """Which tokens are no newlines."""
    return np.array(
        [
            place is not None
            for grid in tokens.grids
            for place in (grid.order() if isinstance(grid, TileGrid) else range(grid.num_tokens))
        ]
    )


@pytest.mark.parametrize("protocol", ["anyres", "fixed"])
@settings(max_examples=40, deadline=None)
@given(pinpoint=st.sampled_from(TINY), part=st.integers(1, 12), scale=st.sampled_from([1, 2, 3]), region=regions())
def test_the_map_is_what_the_processor_renders(anyres, fixed, protocol, pinpoint, part, scale, region) -> None:
    # Of these sizes, every edge of a block is a whole pixel, in the image and in what it is resized to.
    one = anyres if protocol == "anyres" else fixed
    high, wide = pinpoint
    width, height = (
        (wide * scale, min(8 * part, high) * scale) if high <= wide else (min(8 * part, wide) * scale, high * scale)
    )
    tokens = one.token_map(width, height)
    if any((grid.image_width % 8, grid.image_height % 8) != (0, 0) for grid in tokens.grids):
        return
    x0, y0, x1, y1 = (edge * size // 8 for edge, size in zip(region.edges(), (width, height, width, height)))
    shown = touched(one, width, height, (x0, y0, x1, y1))
    expected, real = np.array(covered(tokens, region)), places(tokens)
    assert len(shown) == tokens.num_tokens and not shown[~real].any()
    assert not (shown & ~expected).any()
    if region == Region.full():
        return
    for grid, seen, kept in zip(tokens.grids, by_grid(tokens, shown), by_grid(tokens, expected), strict=True):
        if not isinstance(grid, TileGrid) or (min(grid.left, grid.top) <= 0 and covers(grid)):
            cols = grid.cols + (isinstance(grid, TileGrid) and grid.newline)
            assert (
                seen.reshape(grid.rows, cols)[:, : grid.cols] == kept.reshape(grid.rows, cols)[:, : grid.cols]
            ).all()
            assert (seen.reshape(grid.rows, cols).any(1) == kept.reshape(grid.rows, cols)[:, grid.cols :].T).all()


def by_grid(tokens: TokenMap, values: np.ndarray) -> list[np.ndarray]:
    return np.split(values, np.cumsum([grid.num_tokens for grid in tokens.grids])[:-1])


def covers(grid: TileGrid) -> bool:
    """Whether unpadding cut nothing of the image away."""
    right, bottom = grid.left + grid.width, grid.top + grid.height
    return grid.left <= 0 and grid.top <= 0 and right >= grid.image_width and bottom >= grid.image_height


@pytest.mark.parametrize("protocol", ["anyres", "fixed"])
@settings(max_examples=30, deadline=None)
@given(width=st.integers(8, 260), height=st.integers(8, 260), region=regions())
def test_the_map_of_any_size(anyres, fixed, protocol, width, height, region) -> None:
    # Edges fall between pixels: what is drawn inside the region shows in its tokens alone, and what is drawn around it
    # in all of them but those at its border.
    one = anyres if protocol == "anyres" else fixed
    tokens, (x0, y0, x1, y1) = one.token_map(width, height), region.edges()
    inner = (-(-x0 * width // 8), -(-y0 * height // 8), x1 * width // 8, y1 * height // 8)
    outer = (x0 * width // 8, y0 * height // 8, -(-x1 * width // 8), -(-y1 * height // 8))
    kept = np.array(covered(tokens, region))
    if inner[0] < inner[2] and inner[1] < inner[3]:
        assert not (touched(one, width, height, inner) & ~kept).any()
    if region == Region.full():
        return
    shown = touched(one, width, height, outer)
    for grid, seen, part in zip(tokens.grids, by_grid(tokens, shown), by_grid(tokens, kept), strict=True):
        shape = grid.rows, grid.num_tokens // grid.rows
        table = np.pad(part.reshape(shape)[:, : grid.cols], 1)
        core = table[1:-1, 1:-1] & table[:-2, 1:-1] & table[2:, 1:-1] & table[1:-1, :-2] & table[1:-1, 2:]
        assert seen.reshape(shape)[:, : grid.cols][core].all()
