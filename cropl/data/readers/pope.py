"""POPE: is this object in the image? One file for each way of choosing the absent objects, labels yes and no.

`coco_pope_adversarial.json` and its siblings hold one JSON object per line, despite their names:
`{"question_id": 1, "image": "COCO_val2014_000000310196.jpg", "text": "Is there a snowboard in the image?", "label":
"yes"}`. The random file has 3,000 rows, or 2,910 in the older version that LLaVA's question file follows; both read.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cropl.data.readers.base import Annotation, BadRow, Reader, text
from cropl.data.readers.llava_questions import SHORT_ANSWER, published_id
from cropl.data.readers.rows import json_lines

_CATEGORY = re.compile(r"(?:^|_)(random|popular|adversarial)$")


class Pope(Reader):
    """One of the three files. Each numbers its questions from 1, so the category is part of the source.

    Args:
        file: the questions with their labels.
        images: COCO's folder `val2014`.
        source: by default `pope-adversarial`, `pope-popular` or `pope-random`, as the file's name ends.

    Raises:
        ValueError: no source is given, and the file's name tells none.
    """

    def __init__(self, file: str | Path, images: str | Path | None = None, source: str = "") -> None:
        super().__init__(file, images)
        category = _CATEGORY.search(self.file.stem)
        if not source and not category:
            raise ValueError(f"{self.file}: its name does not end in random, popular or adversarial; give the source")
        self.source = source or f"pope-{category[1] if category else ''}"

    def rows(self) -> Iterator[Any]:
        """The rows, one per line."""
        return json_lines(self.file)

    def parse(self, row: Any, number: int) -> Iterator[Annotation]:
        """One question."""
        question = text(row["text"], "question")
        if row["label"] not in ("yes", "no"):
            raise BadRow("the label is not yes or no", repr(row["label"])[:80])
        yield Annotation(
            id=published_id(row),
            question=question,
            prompt=question + SHORT_ANSWER,
            answers=(row["label"],),
            source=self.source,
            split="test",
            image=text(row["image"], "image"),
            kind="existence",
        )
