"""Tiles that show an image with its regions and a text beneath, and sheets of such tiles."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from cropl.grid import GRID, Region

Colour = tuple[int, int, int]

TRUE: Colour = (30, 160, 80)
PREDICTED: Colour = (225, 60, 50)
BOX: Colour = (40, 110, 250)
INK: Colour = (20, 20, 20)
_PALE, _LINE, _PANEL = (95, 100, 112), (185, 191, 204), (240, 242, 246)
_MARGIN, _MAX_LINES, _MAX_CHARACTERS = 6, 14, 2000


def draw_regions(
    picture: Image.Image | None,
    caption: str | Sequence[str],
    regions: Sequence[tuple[Region, Colour]],
    boxes: Sequence[Sequence[float]] = (),
    width: int = 320,
) -> Image.Image:
    """A tile: the picture with its 8x8 grid, regions and boxes, and the caption beneath, wrapped.

    Args:
        picture: the displayed image; None draws the caption alone.
        caption: a paragraph, or several; all but the first are paler.
        regions: each with its colour, drawn side by side where they are equal.
        boxes: `(x0, y0, x1, y1)` in pixels of the picture.
        width: of the tile in pixels. A picture that is taller than 4/3 of it is made narrower.
    """
    shown = _panel(width) if picture is None else _fitted(picture, width)
    if picture is not None:
        _draw_over(shown, regions, boxes, shown.width / picture.width, shown.height / picture.height)
    paragraphs = [caption] if isinstance(caption, str) else list(caption)
    size = max(11, width // 22)
    font = _font(size)
    texts = [(wrapped(text, size, width - 2 * _MARGIN), INK if i == 0 else _PALE) for i, text in enumerate(paragraphs)]
    texts = [(lines, colour) for lines, colour in texts if lines]
    step = round(1.3 * size)
    space = sum(len(lines) * step + step // 4 for lines, _ in texts) + 2 * _MARGIN
    tile = Image.new("RGB", (width, shown.height + space), "white")
    tile.paste(shown, (0, 0))
    draw = ImageDraw.Draw(tile)
    y = shown.height + _MARGIN
    for lines, colour in texts:
        for line in lines:
            draw.text((_MARGIN, y), line, fill=colour, font=font)
            y += step
        y += step // 4
    return tile


def contact_sheet(
    tiles: Sequence[Image.Image], legend: Mapping[str, Colour] | None = None, columns: int = 4, gap: int = 10
) -> Image.Image:
    """Tiles in rows, on white, under one line that says what the colours mean."""
    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    size = 14
    top = gap + (2 * size if legend else 0)
    width = max(sum(tile.width + gap for tile in row) for row in rows) + gap
    height = sum(max(tile.height for tile in row) + gap for row in rows) + top
    sheet = Image.new("RGB", (width, height), "white")
    draw, x = ImageDraw.Draw(sheet), float(gap)
    for name, colour in (legend or {}).items():
        draw.rectangle((x, gap, x + size, gap + size), outline=colour, width=4)
        draw.text((x + 1.5 * size, gap - 1), name, fill=INK, font=_font(size))
        x += 4 * size + _font(size).getlength(name)
    y = top
    for row in rows:
        left = gap
        for tile in row:
            sheet.paste(tile, (left, y))
            left += tile.width + gap
        y += max(tile.height for tile in row) + gap
    return sheet


def wrapped(text: str, size: int, width: int) -> list[str]:
    """Lines of at most `width` pixels at a font size; words that are wider are broken, endless texts end in dots."""
    font = _font(size)
    rest = " ".join(text[:_MAX_CHARACTERS].split())
    lines: list[str] = []
    while rest and len(lines) < _MAX_LINES:
        count = min(len(rest), 5 * width // size + 1)  # hardly a letter is narrower than a fifth of its height
        while count > 1 and font.getlength(rest[:count]) > width:
            space = rest.rfind(" ", 0, count)
            count = space if space > 0 else count - 1
        lines.append(rest[:count])
        rest = rest[count:].lstrip()
    if rest or len(text) > _MAX_CHARACTERS:
        lines[-1] = lines[-1][:-3].rstrip() + " ..."
    return lines


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _panel(width: int) -> Image.Image:
    panel = Image.new("RGB", (width, 34), _PANEL)
    ImageDraw.Draw(panel).text((_MARGIN, 9), "no image", fill=_PALE, font=_font(14))
    return panel


def _fitted(picture: Image.Image, width: int) -> Image.Image:
    scale = min(width / picture.width, width * 4 / 3 / picture.height)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    return picture.convert("RGB").resize(size)


def _draw_over(
    picture: Image.Image,
    regions: Sequence[tuple[Region, Colour]],
    boxes: Sequence[Sequence[float]],
    scale_x: float,
    scale_y: float,
) -> None:
    draw = ImageDraw.Draw(picture)
    width, height = picture.size
    for i in range(1, GRID):
        draw.line([(i * width / GRID, 0), (i * width / GRID, height)], fill=_LINE, width=1)
        draw.line([(0, i * height / GRID), (width, i * height / GRID)], fill=_LINE, width=1)
    for number, (region, colour) in enumerate(regions):
        x0, y0, x1, y1 = region.edges()
        edges = (x0 * width / GRID, y0 * height / GRID, x1 * width / GRID - 1, y1 * height / GRID - 1)
        _frame(draw, edges, colour, 4, 1 + 4 * number)
    for box in boxes:
        left, right = sorted((box[0] * scale_x, box[2] * scale_x))
        upper, lower = sorted((box[1] * scale_y, box[3] * scale_y))
        _frame(draw, (left, upper, right, lower), BOX, 2, 0)


def _frame(
    draw: ImageDraw.ImageDraw, edges: tuple[float, float, float, float], colour: Colour, line: int, inset: int
) -> None:
    x0, y0, x1, y1 = edges
    # In a picture of a few pixels there is no room for an inset.
    dx, dy = (inset if high - low > 3 * inset else 0 for low, high in ((x0, x1), (y0, y1)))
    draw.rectangle((x0 + dx, y0 + dy, max(x0 + dx, x1 - dx), max(y0 + dy, y1 - dy)), outline=colour, width=line)
