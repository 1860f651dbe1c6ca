"""Tiles and sheets: colours where they belong, captions that are whole, and no picture that cannot be drawn."""

import pytest
from PIL import Image, ImageFont

from cropl.drawing import BOX, PREDICTED, TRUE, contact_sheet, draw_regions, wrapped
from cropl.grid import Region

TEXT = "Which of the two signs that hang above the door on the left is the one that says when the shop opens?"


def test_regions_and_boxes_are_drawn_where_they_are() -> None:
    picture = Image.new("RGB", (640, 480), "white")
    regions = [(Region(2, 2, 3, 3), TRUE), (Region(6, 6, 7, 7), PREDICTED)]
    tile = draw_regions(picture, "What?", regions, [(320, 60, 480, 120)], width=320)
    assert tile.width == 320 and tile.height > 240 and picture.getpixel((160, 120)) == (255, 255, 255)
    assert tile.getpixel((82, 80)) == TRUE and tile.getpixel((120, 80)) != TRUE
    assert tile.getpixel((245, 200)) == PREDICTED and tile.getpixel((200, 30)) == BOX
    equal = draw_regions(picture, "", [(Region.full(), TRUE), (Region.full(), PREDICTED)])
    assert equal.getpixel((2, 100)) == TRUE and equal.getpixel((6, 100)) == PREDICTED


def test_captions_are_wrapped_and_whole() -> None:
    font = ImageFont.load_default(14)
    for text in (TEXT, "a" * 300, "a " * 30, "ab " + "c" * 100, "one\n two\t three"):
        lines = wrapped(text, 14, 300)
        assert all(font.getlength(line) <= 300 for line in lines)
        assert "".join(lines).replace(" ", "") == "".join(text.split())
    assert wrapped("", 14, 300) == [] and wrapped(" \n", 14, 300) == []
    endless = wrapped("word " * 100_000, 14, 300)
    assert len(endless) == 14 and endless[-1].endswith(" ...")


def test_a_caption_makes_the_tile_taller() -> None:
    picture = Image.new("RGB", (32, 32))
    heights = [draw_regions(picture, caption, []).height for caption in ("", "What?", TEXT, [TEXT, "an answer"])]
    assert heights == sorted(set(heights))


@pytest.mark.parametrize("size", [(1, 1), (8000, 2), (2, 8000), (3, 5)])
def test_pictures_of_any_shape(size: tuple[int, int]) -> None:
    regions = [(Region(0, 0, 0, 0), TRUE), (Region(7, 7, 7, 7), PREDICTED)]
    tile = draw_regions(Image.new("RGB", size), TEXT, regions, [(0, 0, *size), (9e9, 5, -9e9, 1)])
    assert tile.width == 320 and tile.height < 320 * 4 / 3 + 200


@pytest.mark.parametrize("text", ["\ud800", "a\0b", "\x1b[31m", "日本語", "🙂" * 400, "ab\u202ecd"])
def test_text_of_any_kind(text: str) -> None:
    assert draw_regions(None, [text, text], []).width == 320


def test_a_sheet_holds_all_tiles() -> None:
    tiles = [Image.new("RGB", (100, 50 + number), (number, 0, 0)) for number in range(5)]
    sheet = contact_sheet(tiles, {"true region": TRUE}, columns=2)
    assert sheet.width == 2 * 100 + 3 * 10 and set(range(5)) <= {
        pixel[0] for _, pixel in sheet.getcolors(1 << 20) or [] if isinstance(pixel, tuple) and pixel[1:] == (0, 0)
    }
    assert TRUE in [pixel for _, pixel in sheet.getcolors(1 << 20) or []]
    assert contact_sheet(tiles[:1]).size == (120, 70)
