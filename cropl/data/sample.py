"""One question about one image, with the evidence for its answer: what every reader yields and every shard holds.

In a shard a sample is `key.jpg` (or png, webp) and `key.json`; `Sample.to_json` is the content of the latter.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from cropl.data.images import load_image
from cropl.grid import Region

SCHEMA = 1
"""Version of the record. A reader refuses a newer one rather than guess."""


@dataclass
class Sample:
    """A question, its accepted answers, and the region that answers it.

    Attributes:
        key: unique name, also of the files in a shard.
        question: the question, without template or image marker.
        answers: accepted answers, the first one is trained on.
        boxes: evidence `(x0, y0, x1, y1)` in pixels of the displayed image.
        width, height: size of the displayed image (EXIF orientation applied) in pixels.
        region: the evidence on the 8x8 grid.
        kind: kind of question, "" if unknown (see `metrics.answer.QUESTION_KINDS`).
        source: data set it comes from.
        split: train, val or test.
        image: the image, its encoded bytes, or its file.
        valid: False marks a repetition that fills an uneven batch; metrics and losses leave it out. Not stored.
    """

    key: str
    question: str
    answers: list[str]
    boxes: list[tuple[float, float, float, float]]
    width: int
    height: int
    region: Region
    kind: str
    source: str
    split: str
    image: Image.Image | bytes | Path
    valid: bool = True

    def picture(self) -> Image.Image:
        """The image as displayed, RGB, decoded where it is not yet.

        Raises:
            ValueError: the image cannot be used; the message names the sample and says why.
        """
        if isinstance(self.image, Image.Image):
            return self.image
        try:
            return load_image(self.image)
        except ValueError as error:
            raise ValueError(f"sample {self.key!r}: {error}") from None

    def to_json(self) -> dict[str, Any]:
        """The record without the image, ready for JSON."""
        return {
            "schema": SCHEMA,
            "key": self.key,
            "question": self.question,
            "answers": list(self.answers),
            "boxes": [list(box) for box in self.boxes],
            "width": self.width,
            "height": self.height,
            "region": list(self.region.as_tuple()),
            "kind": self.kind,
            "source": self.source,
            "split": self.split,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any], image: Image.Image | bytes | Path) -> "Sample":
        """Read a record; unknown keys are tolerated, as published data has them.

        Raises:
            ValueError: another schema, or a key that is missing or of the wrong type or value; the message names it.
        """
        if not isinstance(record, Mapping):
            raise ValueError(f"sample record must be an object, got {type(record).__name__}")
        name = f"sample {record.get('key')!r}"
        if record.get("schema") != SCHEMA:
            raise ValueError(f"{name}: schema {record.get('schema')!r}; this version reads schema {SCHEMA}")
        try:
            region = record["region"]
            if not isinstance(region, list) or len(region) != 4:
                raise ValueError(f"region must be a list of four integers, got {region!r}")
            return cls(
                key=_text(record, "key", empty=False),
                question=_text(record, "question", empty=False),
                answers=_answers(record["answers"]),
                boxes=_boxes(record["boxes"]),
                width=_size(record, "width"),
                height=_size(record, "height"),
                region=Region(*region),
                kind=_text(record, "kind"),
                source=_text(record, "source"),
                split=_text(record, "split"),
                image=image,
            )
        except KeyError as error:
            raise ValueError(f"{name}: key {error.args[0]!r} is missing") from None
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None


def _text(record: Mapping[str, Any], key: str, empty: bool = True) -> str:
    value = record[key]
    if not isinstance(value, str) or not (empty or value.strip()):
        raise ValueError(f"{key} must be text{'' if empty else ' that is not empty'}, got {value!r}")
    return value


def _size(record: Mapping[str, Any], key: str) -> int:
    value = record[key]
    if type(value) is not int or value < 1:
        raise ValueError(f"{key} must be a positive integer, got {value!r}")
    return value


def _answers(value: Any) -> list[str]:
    if not isinstance(value, list) or not value or not all(isinstance(answer, str) for answer in value):
        raise ValueError(f"answers must be a list of at least one text, got {value!r}")
    return list(value)


def _boxes(value: Any) -> list[tuple[float, float, float, float]]:
    def number(entry: Any) -> bool:
        return type(entry) in (int, float) and math.isfinite(entry)

    if not isinstance(value, list) or not all(
        isinstance(box, list) and len(box) == 4 and all(map(number, box)) for box in value
    ):
        raise ValueError(f"boxes must be a list of [x0, y0, x1, y1] of finite numbers, got {value!r}")
    return [(box[0], box[1], box[2], box[3]) for box in value]
