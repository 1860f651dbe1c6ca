"""One question about one image, with the evidence for its answer: what every shard holds.

In a shard a sample is `key.jpg` (or png, webp) and `key.json`; `Sample.to_json` is the content of the latter. A sample
without an image is `key.json` alone. Instruction data are samples too: a conversation is a first question with its
answer, and followups.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image

from cropl.data.images import load_image
from cropl.grid import Region

SCHEMA = 2
"""Version of the record. A reader refuses another one rather than guess."""

Box = tuple[float, float, float, float]
"""`(x0, y0, x1, y1)` in pixels of the displayed image."""

Turn = tuple[str, str]
"""A question and its answer."""


@dataclass
class Sample:
    """A question, its accepted answers, and the region that answers it.

    Attributes:
        key: unique name, also of the files in a shard.
        question: the question, without template or image marker.
        answers: accepted answers, the first one is trained on; none where they are not published.
        boxes: evidence, in pixels of the displayed image; none where the data has none.
        width, height: size of the displayed image (EXIF orientation applied) in pixels; 0 without an image.
        region: the evidence on the 8x8 grid; the full region without boxes.
        kind: kind of question, "" if unknown (see `metrics.answer.QUESTION_KINDS`).
        source: data set it comes from.
        split: train, val or test.
        image: the image, its encoded bytes, or its file; None for text alone.
        valid: False marks a repetition that fills a batch; metrics and losses leave it out. Not stored.
        id: the published id, "" if there is none.
        prompt: what the model is asked where that is more than the question (OCR tokens, options); "" is the question.
        followups: further questions and answers of the conversation.
        encoded: the bytes that `image` was decoded from, where they are at hand: a tenth of what it weighs. Not stored.
        predicted: a localizer's region, where one is known. Not stored: it lies beside the shards.
    """

    key: str
    question: str
    answers: list[str]
    boxes: list[Box]
    width: int
    height: int
    region: Region
    kind: str
    source: str
    split: str
    image: Image.Image | bytes | Path | None
    valid: bool = True
    id: str = ""
    prompt: str = ""
    followups: list[Turn] = field(default_factory=list)
    encoded: bytes | None = field(default=None, repr=False, compare=False)
    predicted: Region | None = None

    @property
    def asked(self) -> str:
        """What the model is asked first: the prompt, or the question where there is none."""
        return self.prompt or self.question

    @property
    def conversation(self) -> list[Turn]:
        """All questions and answers, to train on.

        Raises:
            ValueError: the sample has no answer.
        """
        if not self.answers:
            raise ValueError(f"sample {self.key!r}: it has no answer to train on")
        return [(self.asked, self.answers[0]), *self.followups]

    def picture(self) -> Image.Image:
        """The image as displayed, RGB, decoded where it is not yet.

        Raises:
            ValueError: there is no image, or it cannot be used; the message names the sample and says why.
        """
        if isinstance(self.image, Image.Image):
            return self.image
        if self.image is None:
            raise ValueError(f"sample {self.key!r}: it has no image")
        try:
            return load_image(self.image)
        except ValueError as error:
            raise ValueError(f"sample {self.key!r}: {error}") from None

    def boxes_on(self, width: int, height: int) -> list[Box]:
        """The boxes in pixels of the image in another size."""
        if (width, height) == (self.width, self.height):
            return list(self.boxes)
        x, y = width / self.width, height / self.height
        return [(x0 * x, y0 * y, x1 * x, y1 * y) for x0, y0, x1, y1 in self.boxes]

    def to_json(self) -> dict[str, Any]:
        """The record without the image, ready for JSON."""
        return {
            "schema": SCHEMA,
            "key": self.key,
            "id": self.id,
            "question": self.question,
            "prompt": self.prompt,
            "answers": list(self.answers),
            "followups": [list(turn) for turn in self.followups],
            "boxes": [list(box) for box in self.boxes],
            "width": self.width,
            "height": self.height,
            "region": list(self.region.as_tuple()),
            "kind": self.kind,
            "source": self.source,
            "split": self.split,
        }

    @classmethod
    def from_json(cls, record: Mapping[str, Any], image: Image.Image | bytes | Path | None) -> "Sample":
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
                width=_size(record, "width", image is not None),
                height=_size(record, "height", image is not None),
                region=Region(*region),
                kind=_text(record, "kind"),
                source=_text(record, "source"),
                split=_text(record, "split"),
                image=image,
                id=_text(record, "id"),
                prompt=_text(record, "prompt"),
                followups=_followups(record["followups"]),
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


def _size(record: Mapping[str, Any], key: str, has_image: bool) -> int:
    value = record[key]
    if type(value) is not int or (value < 1 if has_image else value != 0):
        raise ValueError(f"{key} must be {'a positive integer' if has_image else '0 without an image'}, got {value!r}")
    return value


def _answers(value: Any) -> list[str]:
    if not isinstance(value, list) or not all(isinstance(answer, str) for answer in value):
        raise ValueError(f"answers must be a list of texts, got {value!r}")
    return list(value)


def _followups(value: Any) -> list[Turn]:
    def turn(entry: Any) -> bool:
        return isinstance(entry, list) and len(entry) == 2 and all(isinstance(text, str) for text in entry)

    if not isinstance(value, list) or not all(map(turn, value)):
        raise ValueError(f"followups must be a list of [question, answer], got {value!r}")
    return [(question, answer) for question, answer in value]


def _boxes(value: Any) -> list[Box]:
    def number(entry: Any) -> bool:
        return type(entry) in (int, float) and math.isfinite(entry)

    if not isinstance(value, list) or not all(
        isinstance(box, list) and len(box) == 4 and all(map(number, box)) for box in value
    ):
        raise ValueError(f"boxes must be a list of [x0, y0, x1, y1] of finite numbers, got {value!r}")
    return [(box[0], box[1], box[2], box[3]) for box in value]
