"""Makes the pictures of docs/what_is_crop.md from the testbed and its models: `python docs/make_pictures.py`."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw, ImageFont

from cropl import ILP, Localizer, Region, TokenGrid, load_vlm, pruned
from cropl.evaluation.overlay import KEPT, PREDICTED, draw_overlay
from cropl.grid import GRID
from cropl.pruning import keep_mask
from cropl.testbed.samples import samples
from cropl.testbed.weights import resolve

IMAGES = Path(__file__).parent / "images"
SCENE = 8  # of the test split: a word on a sign
SIDE, GAP, TEXT = 320, 24, 66
INK, SOFT, PALE = "#20242e", "#667085", "#e7e9ee"


def steps() -> Image.Image:
    """Scene, grid, region, kept tokens and answer of one question, from left to right."""
    vlm, localizer = load_vlm(resolve("testbed:llava")), Localizer.from_pretrained(resolve("testbed:localizer"))
    sample = samples("test", count=SCENE + 1)[SCENE]
    image, question = sample.picture(), sample.question
    inputs = vlm.inputs([image], [question])
    grid = inputs.grids[0]
    assert isinstance(grid, TokenGrid)
    (region,) = localizer.locate([image], [question])
    (dense,) = vlm.generate(inputs)
    with pruned(vlm, ILP(layer=1), regions=[region], grids=[grid]) as patch:
        (answer,) = vlm.generate(inputs)
        assert patch.kept_B is not None
        kept = int(patch.kept_B[0])
    assert answer == dense and answer in sample.answers, "choose another scene: this one would not show what it should"
    panels = [
        (image, "a picture and a question", question),
        (gridded(image), "an 8 × 8 grid over it", "64 blocks"),
        (gridded(image, region), "the localizer's region", ",".join(map(str, region.as_tuple()))),
        (
            draw_overlay(image, grid, keep_mask(region, grid).tolist(), region),
            "tokens that stay",
            f"{kept} of {grid.num_tokens}",
        ),
    ]
    width = len(panels) * (SIDE + GAP) - GAP
    sheet = Image.new("RGB", (width, SIDE + TEXT + 2 * GAP), "white")
    pen = ImageDraw.Draw(sheet)
    for number, (picture, title, note) in enumerate(panels):
        left = number * (SIDE + GAP)
        shown = picture.convert("RGB")
        shown.thumbnail((SIDE, SIDE), Image.Resampling.LANCZOS)
        shown = shown.resize((SIDE, round(SIDE * shown.height / shown.width)), Image.Resampling.LANCZOS)
        shown = shown.crop((0, 0, SIDE, SIDE))
        sheet.paste(shown, (left, TEXT))
        pen.text((left, 6), f"{number + 1}. {title}", INK, _font(21))
        pen.text((left, 34), note, SOFT, _font(18))
    pen.text(
        (0, SIDE + TEXT + 12),
        f"5. the answer: {answer!r}, the same as with all {grid.num_tokens} tokens",
        INK,
        _font(21),
    )
    return sheet


def gridded(image: Image.Image, region: Region | None = None) -> Image.Image:
    """A copy of the picture with the grid over it, and a region."""
    picture = image.convert("RGB").resize((2 * image.width, 2 * image.height), Image.Resampling.LANCZOS)
    pen = ImageDraw.Draw(picture)
    x, y = picture.width / GRID, picture.height / GRID
    for i in range(1, GRID):
        pen.line([(x * i, 0), (x * i, picture.height)], fill="white", width=2)
        pen.line([(0, y * i), (picture.width, y * i)], fill="white", width=2)
    if region is not None:
        x0, y0, x1, y1 = region.edges()
        pen.rectangle((x * x0, y * y0, x * x1 - 1, y * y1 - 1), outline=PREDICTED, width=8)
    return picture


def _font(size: int) -> ImageFont.FreeTypeFont:
    import matplotlib

    return ImageFont.truetype(str(Path(matplotlib.get_data_path()) / "fonts/ttf/DejaVuSans.ttf"), size)


def ilp() -> str:
    """SVG: rows of tokens that get shorter behind decoder layer K, and the cache beside them."""
    parts = [_text(20, 28, "ILP: inside the language model", size=17, weight="bold")]
    kept, shown = range(6, 10), 16
    for layer in range(6):
        y = 262 - 36 * layer
        pruned_here = layer >= 2
        parts.append(_text(20, y + 15, f"decoder layer {layer}"))
        for token in range(shown):
            live = not pruned_here or token in kept
            color = KEPT if token in kept else "#b9c6e8"
            if live:
                parts.append(_box(130 + 22 * token, y, 18, 20, color))
            else:
                parts.append(_box(130 + 22 * token, y, 18, 20, "none", PALE))
        parts += [_box(500 + 22 * token, y, 18, 20, PREDICTED) for token in range(4)]
    parts.append('<line x1="20" y1="216" x2="600" y2="216" stroke="#20242e" stroke-dasharray="5 4"/>')
    parts.append(_text(608, 220, "K = 2: tokens outside the region are dropped,"))
    parts.append(_text(608, 238, "from hidden states and from the KV cache"))
    parts.append(_text(130, 312, "visual tokens (dark: of the region)"))
    parts.append(_text(500, 312, "text"))
    return _svg(930, 330, parts)


def plc() -> str:
    """SVG: an image's tokens, the compressor, and the 68 tokens that the language model gets."""
    parts = [_text(20, 28, "PLC: ahead of the language model", size=17, weight="bold")]
    region = Region(4, 1, 6, 3)
    cells = set(region.cells())
    for row in range(8):
        for col in range(8):
            color = KEPT if (col, row) in cells else "#b9c6e8"
            parts.append(_box(20 + 20 * col, 70 + 20 * row, 17, 17, color))
    parts.append(_text(20, 254, "576 visual tokens of the picture"))
    parts += [_arrow(190, 110, 250, 110), _arrow(190, 200, 250, 200)]
    parts.append(_frame(255, 70, 250, 72, "64 queries attend to the region,", "8 × 8 anchor tokens fused in"))
    parts.append(_frame(255, 166, 250, 58, "4 queries attend", "to everything outside it"))
    parts += [_arrow(508, 106, 560, 130), _arrow(508, 196, 560, 160)]
    for token in range(17):
        parts.append(_box(568 + 12 * token, 134, 9, 20, KEPT if token < 16 else "#b9c6e8"))
    parts.append(_text(568, 176, "64 + 4 = 68 tokens"))
    parts.append(_arrow(776, 144, 800, 144))
    parts.append(_frame(804, 110, 84, 68, "language", "model"))
    return _svg(900, 270, parts)


def _svg(width: int, height: int, parts: list[str]) -> str:
    head = f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" font-family="sans-serif">'
    arrow = (
        '<defs><marker id="a" markerWidth="8" markerHeight="8" refX="7" refY="4" orient="auto">'
        f'<path d="M0 0L8 4L0 8z" fill="{INK}"/></marker></defs>'
    )
    return "\n".join([head, arrow, f'<rect width="{width}" height="{height}" fill="#fff"/>', *parts, "</svg>\n"])


def _text(x: float, y: float, text: str, size: int = 13, weight: str = "normal") -> str:
    return f'<text x="{x}" y="{y}" font-size="{size}" font-weight="{weight}" fill="{INK}">{text}</text>'


def _box(x: float, y: float, width: float, height: float, fill: str, stroke: str = "none") -> str:
    return f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="3" fill="{fill}" stroke="{stroke}"/>'


def _frame(x: float, y: float, width: float, height: float, first: str, second: str) -> str:
    frame = f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="8" fill="#f6f7fa" stroke="{SOFT}"/>'
    middle = y + height / 2
    return "\n".join([frame, _text(x + 12, middle - 4, first), _text(x + 12, middle + 16, second)])


def _arrow(x0: float, y0: float, x1: float, y1: float) -> str:
    return f'<line x1="{x0}" y1="{y0}" x2="{x1}" y2="{y1}" stroke="{INK}" marker-end="url(#a)"/>'


if __name__ == "__main__":
    with torch.inference_mode():
        steps().quantize(200).save(IMAGES / "steps.png", optimize=True)
    (IMAGES / "ilp.svg").write_text(ilp(), encoding="utf-8")
    (IMAGES / "plc.svg").write_text(plc(), encoding="utf-8")
