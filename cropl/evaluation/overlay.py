"""Pictures of what a method kept: the 8x8 grid, regions and kept tokens over the image, as PNG or as inline SVG."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

from cropl.grid import GRID, Region, TokenGrid
from cropl.tiling import Tokens, finest

PREDICTED, TRUTH, KEPT = "#e4572e", "#1b998b", "#2f6fed"


def kept_runs(keep: Sequence[bool], grid: TokenGrid) -> list[tuple[int, int, int, int]]:
    """Kept tokens as rectangles `(row, first column, rows, columns)`; equal runs of following rows are joined."""
    runs: list[tuple[int, int, int, int]] = []
    for row in range(grid.rows):
        col = 0
        while col < grid.cols:
            if not keep[row * grid.cols + col]:
                col += 1
                continue
            first = col
            while col < grid.cols and keep[row * grid.cols + col]:
                col += 1
            above = [i for i, r in enumerate(runs) if r[1] == first and r[3] == col - first and r[0] + r[2] == row]
            if above:
                runs[above[0]] = (runs[above[0]][0], first, runs[above[0]][2] + 1, col - first)
            else:
                runs.append((row, first, 1, col - first))
    return runs


def kept_outline(keep: Sequence[bool], grid: TokenGrid) -> list[tuple[int, int, int, int]]:
    """Lines `(x0, y0, x1, y1)`, in tokens, where a kept token meets a dropped one or the end of the grid."""

    def kept(row: int, col: int) -> bool:
        return 0 <= row < grid.rows and 0 <= col < grid.cols and keep[row * grid.cols + col]

    lines = []
    for row in range(grid.rows + 1):
        for col in range(grid.cols + 1):
            if kept(row, col) != kept(row - 1, col):
                lines.append((col, row, col + 1, row))
            if kept(row, col) != kept(row, col - 1):
                lines.append((col, row, col, row + 1))
    return lines


@dataclass(frozen=True)
class Cells:
    """The grid that is drawn, the finest of the image's, over a picture of it.

    Attributes:
        grid: its rows and columns.
        keep: which of its tokens are kept, row by row.
        left, top, width, height: of the first cell, in pixels of the picture.
    """

    grid: TokenGrid
    keep: list[bool]
    left: float
    top: float
    width: float
    height: float

    @classmethod
    def of(cls, tokens: Tokens, keep: Sequence[bool], width: float, height: float) -> Cells:
        """The cells over a picture of this size; `keep` has an entry for each of the image's tokens."""
        grid, places = finest(tokens)
        x, y = width / grid.image_width, height / grid.image_height
        size = (grid.width / grid.cols * x, grid.height / grid.rows * y)
        return cls(grid, [keep[place] for place in places], grid.left * x, grid.top * y, *size)


def draw_overlay(
    image: Image.Image, grid: Tokens, keep: Sequence[bool], region: Region | None, truth: Region | None = None
) -> Image.Image:
    """A copy of `image` with kept tokens tinted, the rest faded, the 8x8 grid, the region and (dashed) the true one.

    Small images are enlarged to 640 pixels on the long side, so that the lines stay readable. Of several grids of
    tokens, the finest is drawn.
    """
    scale = max(1.0, 640 / max(image.size))
    width, height = round(image.width * scale), round(image.height * scale)
    base = image.convert("RGB").resize((width, height), Image.Resampling.LANCZOS)
    faded = Image.blend(base, Image.new("RGB", base.size, "white"), 0.55)
    mask = Image.new("L", base.size, 0)
    pen = ImageDraw.Draw(mask)
    cells = Cells.of(grid, keep, image.width * scale, image.height * scale)
    boxes = [
        (
            cells.left + col * cells.width,
            cells.top + row * cells.height,
            cells.left + (col + cols) * cells.width - 1,
            cells.top + (row + rows) * cells.height - 1,
        )
        for row, col, rows, cols in kept_runs(cells.keep, cells.grid)
    ]
    for box in boxes:
        pen.rectangle(box, fill=255)
    picture = Image.composite(Image.blend(base, Image.new("RGB", base.size, KEPT), 0.14), faded, mask)
    draw = ImageDraw.Draw(picture)
    for i in range(1, GRID):
        draw.line([(width * i / GRID, 0), (width * i / GRID, height)], fill="#b9bfcc", width=1)
        draw.line([(0, height * i / GRID), (width, height * i / GRID)], fill="#b9bfcc", width=1)
    for x0, y0, x1, y1 in kept_outline(cells.keep, cells.grid):
        ends = [(cells.left + x * cells.width, cells.top + y * cells.height) for x, y in ((x0, y0), (x1, y1))]
        draw.line(ends, fill=KEPT, width=2)
    if region is not None:
        draw.rectangle(_pixels(region, width, height), outline=PREDICTED, width=4)
    if truth is not None:
        _dashed(draw, _pixels(truth, width, height), TRUTH)
    return picture


def svg_overlay(
    image: Image.Image,
    grid: Tokens,
    keep: Sequence[bool] | None,
    region: Region | None,
    truth: Region | None,
    max_side: int = 300,
) -> str:
    """The same as an inline SVG: a small JPEG as data URI under vector lines."""
    width, height = image.size
    shrink = min(1.0, max_side / max(width, height))
    small = image.convert("RGB").resize((max(1, round(width * shrink)), max(1, round(height * shrink))))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=80)
    data = base64.b64encode(buffer.getvalue()).decode("ascii")
    unit = max(width, height) / 300  # line widths are given for a 300 pixel picture
    parts = [
        f'<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">'
        f'<image href="data:image/jpeg;base64,{data}" width="{width}" height="{height}"/>'
    ]
    if keep is not None:
        cells = Cells.of(grid, keep, width, height)
        left, top, cell_w, cell_h = cells.left, cells.top, cells.width, cells.height
        holes = "".join(
            f"M{left + col * cell_w:.1f} {top + row * cell_h:.1f}h{cols * cell_w:.1f}v{rows * cell_h:.1f}"
            f"h{-cols * cell_w:.1f}z"
            for row, col, rows, cols in kept_runs(cells.keep, cells.grid)
        )
        # Everything that was dropped is faded: an outer rectangle with the kept runs as holes.
        parts.append(
            f'<path d="M0 0h{width}v{height}h{-width}z{holes}" fill="#fff" fill-opacity="0.66" fill-rule="evenodd"/>'
            f'<path d="{holes}" fill="{KEPT}" fill-opacity="0.12"/>'
        )
        outline = "".join(
            f"M{left + x0 * cell_w:.1f} {top + y0 * cell_h:.1f}L{left + x1 * cell_w:.1f} {top + y1 * cell_h:.1f}"
            for x0, y0, x1, y1 in kept_outline(cells.keep, cells.grid)
        )
        parts.append(f'<path d="{outline}" stroke="{KEPT}" stroke-width="{1.2 * unit:.2f}"/>')
    lines = "".join(f"M{width * i / GRID:.1f} 0v{height}M0 {height * i / GRID:.1f}h{width}" for i in range(1, GRID))
    parts.append(f'<path d="{lines}" stroke="#7d8597" stroke-opacity="0.45" stroke-width="{0.6 * unit:.2f}"/>')
    dashes = f'stroke-dasharray="{6 * unit:.1f} {4 * unit:.1f}"'
    for box, color, dash in ((region, PREDICTED, ""), (truth, TRUTH, dashes)):
        if box is not None:
            x0, y0, x1, y1 = box.edges()
            place = f'x="{width * x0 / GRID:.1f}" y="{height * y0 / GRID:.1f}"'
            size = f'width="{width * (x1 - x0) / GRID:.1f}" height="{height * (y1 - y0) / GRID:.1f}"'
            style = f'fill="none" stroke="{color}" stroke-width="{2.4 * unit:.2f}" {dash}'
            parts.append(f"<rect {place} {size} {style}/>")
    return "".join([*parts, "</svg>"])


def _pixels(region: Region, width: int, height: int) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = region.edges()
    return width * x0 / GRID, height * y0 / GRID, width * x1 / GRID - 1, height * y1 / GRID - 1


def _dashed(draw: ImageDraw.ImageDraw, box: tuple[float, float, float, float], color: str, dash: int = 10) -> None:
    x0, y0, x1, y1 = box
    for start in range(int(x0), int(x1), 2 * dash):
        for y in (y0, y1):
            draw.line([(start, y), (min(start + dash, x1), y)], fill=color, width=4)
    for start in range(int(y0), int(y1), 2 * dash):
        for x in (x0, x1):
            draw.line([(x, start), (x, min(start + dash, y1))], fill=color, width=4)
