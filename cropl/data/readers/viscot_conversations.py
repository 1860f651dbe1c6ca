"""Visual-CoT as LLaVA conversations: `viscot_363k.json` and the benchmark files.

A row shows its image twice; the second path ends in `###[x0, y0, x1, y1]`, the box around all evidence in pixels of the
original image. The first answer is the same box in fractions of the image padded to a square, so it says something of
the image's size, which these files do not state.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from itertools import chain
from typing import Any

from cropl.data.readers.base import Annotation, BadRow, Reader, Rejected, split_of, text, unique_ids

TURNS = ["human", "gpt", "human", "gpt"]

_REQUEST = re.compile(r"\s*Please [^.?!]*provide the bounding box coordinate[^?!]*$")
_IMAGE = re.compile(r"(.+)###\[(-?\d+), *(-?\d+), *(-?\d+), *(-?\d+)\]")
_FRACTIONS = re.compile(r"\[(-?\d\.\d{3}), (-?\d\.\d{3}), (-?\d\.\d{3}), (-?\d\.\d{3})\]")

LARGEST = 20_000
"""Pixels of the longest side that `likely_size` thinks of."""

SIDES = (500, 640, 1024)
"""Longest sides that photographs of GQA and CUB, COCO, and OpenImages are scaled to."""

RATIOS = (1, 3 / 4, 2 / 3, 9 / 16)

Axis = tuple[tuple[int, int], tuple[int, int]]
"""Both edges of a box along one axis, each in whole pixels and in published thousandths."""


class VisCotConversations(Reader):
    """Questions with one enclosing box, cut to whole pixels. Boxes beyond their image or without area are left so.

    The files number their questions per source, so an id may come again (see `unique_ids`).

    Args:
        file: `viscot_363k.json`, or a benchmark's.
        images: the folder that holds `cot/`.
    """

    def __iter__(self) -> Iterator[Annotation | Rejected]:
        return unique_ids(super().__iter__())

    def parse(self, row: Any, number: int) -> Iterable[Annotation]:
        """One annotation."""
        turns = row["conversations"]
        if [turn["from"] for turn in turns] != TURNS:
            raise BadRow("turns are not human, gpt, human, gpt", [turn["from"] for turn in turns][:8])
        match = _IMAGE.fullmatch(text(row["image"][-1], "image"))
        if match is None:
            raise BadRow("no box", repr(row["image"][-1])[:80])
        x0, y0, x1, y1 = (int(pixel) for pixel in match.groups()[1:])
        yield Annotation(
            id=str(row.get("question_id", number)),
            question=text(_REQUEST.sub("", turns[0]["value"].replace("<image>", "")), "question"),
            answers=(text(turns[-1]["value"], "answer"),),
            source=text(row["dataset"], "dataset"),
            split=split_of(row["split"]),
            image=match[1],
            boxes=((x0, y0, x1, y1),),
            likely_size=likely_size((x0, y0, x1, y1), turns[1]["value"]),
        )


def likely_size(box: tuple[int, int, int, int], published: str) -> tuple[int, int] | None:
    """A size `(width, height)` for which a pixel box is published as these fractions; None if there is none.

    Where several fit it is one that holds the box, then one with a common longest side, then the one whose ratio of
    sides is nearest to a common one.

    Args:
        box: `(x0, y0, x1, y1)`, cut to whole pixels.
        published: `[0.282, 0.316, 0.794, 0.738]`, fractions of the image padded to a square, rounded.
    """
    match = _FRACTIONS.fullmatch(published.strip())
    if match is None:
        return None
    u0, v0, u1, v1 = (round(float(fraction) * 1000) for fraction in match.groups())
    x, y = ((box[0], u0), (box[2], u1)), ((box[1], v0), (box[3], v1))

    def unnatural(size: tuple[int, int]) -> tuple[bool, bool, float, tuple[int, int]]:
        short, side = min(size), max(size)
        outside = max(box[0], box[2]) > size[0] or max(box[1], box[3]) > size[1]
        return outside, side not in SIDES, min(abs(short - ratio * side) for ratio in RATIOS), size

    sizes = chain(_sizes(x, y), ((short, side) for side, short in _sizes(y, x)))
    return min(sizes, key=unnatural, default=None)


def _sizes(along: Axis, across: Axis) -> Iterator[tuple[int, int]]:
    """All `(long side, short side)` that fit; `along` is the box on the long side, which is not padded."""
    low = max([1, *(-(-2000 * _cut(pixel)[0] // (2 * part + 1)) for pixel, part in along if part >= 0)])
    high = min([LARGEST, *(2000 * _cut(pixel)[1] // (2 * part - 1) for pixel, part in along if part > 0)])
    for side in range(low, high + 1):
        if 0 in _paddings(along, side):
            for padding in _paddings(across, side):
                for short in (side - 2 * padding, side - 2 * padding - 1):
                    if padding >= 0 and short > 0:
                        yield side, short


def _paddings(axis: Axis, side: int) -> range:
    """Pixels before the image that publish both edges rightly: |1000 (edge + padding) / side - part| <= 1/2."""
    first = max(((2 * part - 1) * side - 2000 * _cut(pixel)[1]) // 2000 + 1 for pixel, part in axis)
    last = min(((2 * part + 1) * side - 2000 * _cut(pixel)[0]) // 2000 for pixel, part in axis)
    return range(first, last + 1)


def _cut(pixel: int) -> tuple[int, int]:
    """Between which numbers an edge lay before it was cut towards zero."""
    return (pixel, pixel + 1) if pixel >= 0 else (pixel - 1, pixel)
