"""What every reader shares: a published file, row by row, as annotations; what cannot be used is told, not dropped.

A reader parses one format and looks at no image. It yields an `Annotation` for each usable row, and a `Rejected` with
a reason for each other one, so that whoever builds shards can count them, list them, and refuse a file with too many.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

from cropl.data.readers.rows import BadRow, json_rows
from cropl.data.sample import Box, Turn


@dataclass(frozen=True)
class Annotation:
    """One usable row, before its image is looked at.

    Attributes:
        id: the published id, unique within the file; the row's number where there is none.
        question: the question, without template or image marker.
        answers: accepted answers, the first one is trained on; none where they are not published.
        source: the data set.
        split: train, val or test.
        image: path of the image below the reader's `images` folder; None for text alone.
        boxes: evidence in pixels of the displayed image; none where the data has none.
        size: `(width, height)` of the image as the file states it; None where it does not.
        likely_size: a size that fits what the file says of the boxes, for a placeholder; None where nothing does.
        kind, prompt, followups: see `cropl.data.sample.Sample`.
    """

    id: str
    question: str
    answers: tuple[str, ...]
    source: str
    split: str
    image: str | None = None
    boxes: tuple[Box, ...] = ()
    size: tuple[int, int] | None = None
    likely_size: tuple[int, int] | None = None
    kind: str = ""
    prompt: str = ""
    followups: tuple[Turn, ...] = ()


@dataclass(frozen=True)
class Rejected:
    """A row that cannot be used: where it stands (`file, row 7`), and why."""

    where: str
    reason: str
    detail: str = ""


class Reader(ABC):
    """One published file.

    Args:
        file: the annotations.
        images: folder that the rows' image paths start from; None where no images are at hand.
    """

    streams: ClassVar[bool] = True
    """Whether the first annotations come at once; False for a format of which a large file must be read whole."""

    def __init__(self, file: str | Path, images: str | Path | None = None) -> None:
        self.file = Path(file)
        self.images = None if images is None else Path(images)

    @property
    def files(self) -> list[Path]:
        """The files that this reader needs beside images."""
        return [self.file]

    def rows(self) -> Iterator[Any]:
        """The raw rows, in file order; a row that is not JSON is a `BadRow` in its place.

        Raises:
            ValueError: the file is missing, or nothing like what this reader reads.
        """
        return json_rows(self.file)

    @abstractmethod
    def parse(self, row: Any, number: int) -> Iterable[Annotation]:
        """The annotations of the 0-based row `number`.

        Raises:
            BadRow: the row cannot be used. (A KeyError, TypeError or ValueError counts as a malformed row.)
        """

    def __iter__(self) -> Iterator[Annotation | Rejected]:
        for number, row in enumerate(self.rows()):
            where = f"{self.file.name}, row {number + 1}"
            try:
                if isinstance(row, BadRow):
                    raise row
                found = list(self.parse(row, number))
                for one in found:
                    _check_text(one)
                yield from found
            except BadRow as bad:
                yield Rejected(where, bad.reason, bad.detail)
            except KeyError as error:
                yield Rejected(where, f"key {error.args[0]!r} is missing")
            except (TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
                yield Rejected(where, "malformed row", f"{type(error).__name__}: {error}"[:200])


def text(value: Any, what: str) -> str:
    """`value` stripped, if it is text that is not empty; BadRow "no `what`" otherwise."""
    if not isinstance(value, str) or not value.strip():
        raise BadRow(f"no {what}", repr(value)[:80])
    return value.strip()


def pixel_boxes(value: Any) -> tuple[Box, ...]:
    """A list of `[x0, y0, x1, y1]` in pixels; BadRow for no boxes, wrong counts, no numbers, or normalised ones."""
    if not isinstance(value, list) or not value:
        raise BadRow("no box", repr(value)[:80])
    for box in value:
        if not isinstance(box, list) or len(box) != 4:
            raise BadRow("a box is not four numbers", repr(box)[:80])
        if not all(type(number) in (int, float) and math.isfinite(number) for number in box):
            raise BadRow("a box is not four numbers", repr(box)[:80])
    if all(abs(number) <= 1 for box in value for number in box):
        raise BadRow("boxes are normalised, pixels are expected", repr(value)[:80])
    return tuple((box[0], box[1], box[2], box[3]) for box in value)


def image_size(row: Any) -> tuple[int, int]:
    """`(width, height)` that a row states; BadRow "no size" where they are not whole numbers of pixels."""
    width, height = row["width"], row["height"]
    if type(width) is not int or type(height) is not int or width < 1 or height < 1:
        raise BadRow("no size", f"{width!r} x {height!r}")
    return width, height


SPLITS = {"train": "train", "val": "val", "dev": "val", "test": "test"}
"""What published files call their splits, and what samples do."""


def split_of(value: Any) -> str:
    """The split that a row states; BadRow where it is none of `SPLITS`."""
    if not isinstance(value, str) or value not in SPLITS:
        raise BadRow("unknown split", repr(value)[:80])
    return SPLITS[value]


def split_of_file(file: Path, split: str | None) -> str:
    """`split`, or the one that a file is named for: `instances_val2017.json`, `dev.jsonl`.

    Raises:
        ValueError: it is unknown, or the file's name tells none.
    """
    named = [split] if split is not None else [word for word in re.findall("[a-z]+", file.stem) if word in SPLITS]
    if len(named) != 1 or named[0] not in SPLITS:
        raise ValueError(f"{file}: which split is it? Give split: {', '.join(SPLITS)}")
    return SPLITS[named[0]]


def unique_ids(found: Iterable[Annotation | Rejected]) -> Iterator[Annotation | Rejected]:
    """The same, with `-2`, `-3`, ... after an id that a file publishes again."""
    seen: set[str] = set()
    last: dict[str, int] = {}  # a file may give all its rows one id
    for one in found:
        if isinstance(one, Annotation):
            id, times = one.id, last.get(one.id, 1)
            while id in seen:
                times += 1
                id = f"{one.id}-{times}"
            seen.add(id)
            if id != one.id:
                last[one.id] = times
                one = replace(one, id=id)
        yield one


def _check_text(one: Annotation) -> None:
    """BadRow for half a character (a lone surrogate), which JSON's escapes can say and no file can hold."""
    asked = (one.id, one.question, one.prompt, one.source, one.image or "")
    for value in chain(asked, one.answers, *one.followups):
        try:
            value.encode()
        except UnicodeEncodeError:
            raise BadRow("text with half a character", ascii(value)[:80]) from None
