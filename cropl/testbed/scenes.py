"""Scenes: a few coloured shapes and word signs on a background, drawn at a seeded size, place and colour.

``scene(split, index)`` is a pure function of its arguments, and the splits' seeds are disjoint. Sizes are relative to
the long side of the picture, so that an object covers about as many visual tokens in every aspect ratio.
"""

from __future__ import annotations

import math
import random
from dataclasses import dataclass
from functools import cache

from PIL import Image, ImageDraw, ImageFont

from cropl.data.sample import Box
from cropl.testbed.backgrounds import background
from cropl.testbed.world import COLORS, SHAPES, SPLITS, WORDS

VERSION = 1
"""Part of every seed: raise it when a change alters what is drawn, so that caches of older scenes are not reused."""


@dataclass(frozen=True)
class Thing:
    """One object of a scene. ``kind`` is a shape's name or ``sign``; ``box`` is xyxy in pixels of the picture."""

    kind: str
    color: str
    box: Box
    word: str | None = None

    @property
    def center(self) -> tuple[float, float]:
        x0, y0, x1, y1 = self.box
        return (x0 + x1) / 2, (y0 + y1) / 2

    @property
    def name(self) -> str:
        return f"{self.color} {self.kind}"


@dataclass(frozen=True)
class Scene:
    split: str
    index: int
    width: int
    height: int
    things: tuple[Thing, ...]

    def render(self) -> Image.Image:
        """Draw the scene: RGB, ``width`` x ``height`` pixels."""
        rng = _rng(self.split, self.index, "paint")
        picture = background(rng, self.split, self.width, self.height)
        for thing in self.things:
            _draw(picture, thing, rng)
        return picture


def scene(split: str, index: int) -> Scene:
    """Scene number ``index`` of ``split`` (``train``, ``val`` or ``test``); not yet painted."""
    if split not in SPLITS:
        raise ValueError(f"split {split!r} of the testbed does not exist: choose one of {', '.join(SPLITS)}")
    rng = _rng(split, index, "layout")
    long_side = rng.choice((256, 320, 384, 448))
    short_side = round(long_side / rng.uniform(1.0, 1.6))
    width, height = (long_side, short_side) if rng.random() < 0.6 else (short_side, long_side)
    layout = _Layout(rng, width, height)
    _place_things(rng, layout)
    return Scene(split, index, width, height, tuple(layout.things))


def _rng(split: str, index: int, purpose: str) -> random.Random:
    return random.Random(f"cropl-testbed-{VERSION}-{split}-{index}-{purpose}")


def _place_things(rng: random.Random, layout: _Layout) -> None:
    """A flock of one to four equal shapes near each other, then one or two signs, then one or two single shapes."""
    flock, *singles = rng.sample(SHAPES, 3)
    for color in rng.sample(list(COLORS), rng.choice((1, 2, 2, 3, 3, 4, 4, 4))):
        layout.place(flock, color, near=layout.things[0].center if layout.things else None)
    for color, word in zip(rng.sample(list(COLORS), 2), rng.sample(WORDS, 2)):
        if layout.count("sign") == 0 or rng.random() < 0.4:
            layout.place("sign", color, word=word)
    for kind in singles:
        if layout.count("single") == 0 or rng.random() < 0.5:
            layout.place(kind, rng.choice(list(COLORS)))


class _Layout:
    """Places things without overlap; a thing that finds no room after many tries is left out."""

    def __init__(self, rng: random.Random, width: int, height: int):
        self.rng, self.width, self.height = rng, width, height
        self.unit = max(width, height)
        self.things: list[Thing] = []

    def count(self, kind: str) -> int:
        if kind == "single":
            return len({t.kind for t in self.things if t.kind != "sign"}) - 1
        return sum(t.kind == kind for t in self.things)

    def place(self, kind: str, color: str, word: str | None = None, near: tuple[float, float] | None = None) -> None:
        for _ in range(40):
            box = self._draw_box(word, near)
            if box and not any(_overlap(box, t.box, margin=0.02 * self.unit) for t in self.things):
                self.things.append(Thing(kind, color, box, word))
                return

    def _draw_box(self, word: str | None, near: tuple[float, float] | None) -> Box | None:
        if word:
            h = self.unit * self.rng.uniform(0.13, 0.16)
            w = h * (0.75 + 0.52 * len(word))
        else:
            w = h = self.unit * self.rng.uniform(0.13, 0.19)
        if near:
            reach = 0.31 * self.unit
            x = near[0] - w / 2 + self.rng.uniform(-reach, reach)
            y = near[1] - h / 2 + self.rng.uniform(-reach, reach)
        else:
            x, y = self.rng.uniform(0, self.width - w), self.rng.uniform(0, self.height - h)
        inside = x >= 0 and y >= 0 and x + w <= self.width and y + h <= self.height
        return (x, y, x + w, y + h) if inside else None


def _overlap(a: Box, b: Box, margin: float) -> bool:
    return a[0] < b[2] + margin and b[0] < a[2] + margin and a[1] < b[3] + margin and b[1] < a[3] + margin


def _draw(picture: Image.Image, thing: Thing, rng: random.Random) -> None:
    fill = tuple(max(0, min(255, c + rng.randint(-12, 12))) for c in COLORS[thing.color])
    luminance = 0.3 * fill[0] + 0.59 * fill[1] + 0.11 * fill[2]
    ink = (15, 15, 15) if luminance > 120 else (250, 250, 250)
    draw = ImageDraw.Draw(picture)
    line = max(1, round(max(picture.size) / 160))
    if thing.kind == "sign":
        draw.rectangle(thing.box, fill=fill, outline=ink, width=line)
        _write(draw, thing, ink)
    elif thing.kind == "circle":
        draw.ellipse(thing.box, fill=fill, outline=ink, width=line)
    else:
        draw.polygon(_outline(thing), fill=fill, outline=ink, width=line)


def _write(draw: ImageDraw.ImageDraw, thing: Thing, ink: tuple[int, int, int]) -> None:
    x0, y0, x1, y1 = thing.box
    text = (thing.word or "").upper()
    size = round(0.78 * (y1 - y0))
    while size > 6 and draw.textlength(text, _font(size)) > 0.88 * (x1 - x0):
        size -= 1
    center = ((x0 + x1) / 2, (y0 + y1) / 2)
    draw.text(center, text, fill=ink, font=_font(size), anchor="mm", stroke_width=max(1, size // 24), stroke_fill=ink)


@cache
def _font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(size)


def _outline(thing: Thing) -> list[tuple[float, float]]:
    """The polygon of a shape in pixels, from corners given in the unit square."""
    x0, y0, x1, y1 = thing.box
    return [(x0 + u * (x1 - x0), y0 + v * (y1 - y0)) for u, v in _POLYGONS[thing.kind]]


def _star() -> list[tuple[float, float]]:
    radii = (0.5, 0.21)
    return [
        (0.5 + radii[i % 2] * math.sin(i * math.pi / 5), 0.5 - radii[i % 2] * math.cos(i * math.pi / 5))
        for i in range(10)
    ]


def _heart() -> list[tuple[float, float]]:
    points = []
    for i in range(40):
        t = 2 * math.pi * i / 40
        x = 16 * math.sin(t) ** 3
        y = 13 * math.cos(t) - 5 * math.cos(2 * t) - 2 * math.cos(3 * t) - math.cos(4 * t)
        points.append((0.5 + x / 34, 0.46 - y / 32))
    return points


_POLYGONS: dict[str, list[tuple[float, float]]] = {
    "square": [(0.04, 0.04), (0.96, 0.04), (0.96, 0.96), (0.04, 0.96)],
    "triangle": [(0.5, 0.02), (0.98, 0.96), (0.02, 0.96)],
    "cross": [(a, b) for a, b in (
        (0.33, 0), (0.67, 0), (0.67, 0.33), (1, 0.33), (1, 0.67), (0.67, 0.67),
        (0.67, 1), (0.33, 1), (0.33, 0.67), (0, 0.67), (0, 0.33), (0.33, 0.33),
    )],
    "star": _star(),
    "heart": _heart(),
}  # fmt: skip
