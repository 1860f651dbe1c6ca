"""Visual Spatial Reasoning as first published: captions of COCO photographs that are true or false."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cropl.data.readers.base import Annotation, BadRow, Reader, split_of_file, text


class Vsr(Reader):
    """Each caption as a yes/no question. The published files have no boxes.

    Args:
        file: `train.jsonl`, `dev.jsonl` or `test.jsonl` of the random or the zero-shot split.
        images: the folder of the photographs.
        split: what the rows count as; by default what the file is named for.
    """

    def __init__(self, file: str | Path, images: str | Path | None = None, split: str | None = None) -> None:
        super().__init__(file, images)
        self.split = split_of_file(self.file, split)

    def parse(self, row: Any, number: int) -> Iterable[Annotation]:
        """One annotation; the rows have no ids, so it is named by its number."""
        caption, label = text(row["caption"], "caption").rstrip("."), row["label"]
        if type(label) is not int or label not in (0, 1):
            raise BadRow("the label is neither 0 nor 1", repr(label)[:80])
        yield Annotation(
            id=str(number),
            question=f"Is it true that {caption[:1].lower()}{caption[1:]}?",
            answers=(("No", "Yes")[label],),
            source="vsr",
            split=self.split,
            image=text(row["image"], "image"),
            kind="relation",
        )
