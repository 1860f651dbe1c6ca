"""Receipts as they are published: a line of JSON for each question."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from cropl.data.readers.base import Annotation, Reader, pixel_boxes, text


class ReceiptsReader(Reader):
    """`{"id", "file", "question", "answer", "fields"}`: the field that answers is boxed, in pixels."""

    def parse(self, row: Any, number: int) -> Iterator[Annotation]:
        yield Annotation(
            id=text(row["id"], "id"),
            question=text(row["question"], "question"),
            answers=(text(row["answer"], "answer"),),
            source="receipts",
            split="test",
            image=text(row["file"], "file"),
            boxes=pixel_boxes(row["fields"]),
        )
