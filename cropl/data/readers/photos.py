"""A list of photographs with boxes and captions: one question per photograph and category, one for its captions."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from cropl.data.readers.base import (
    Annotation,
    BadRow,
    Reader,
    Rejected,
    image_size,
    pixel_boxes,
    split_of,
    text,
    unique_ids,
)

QUESTION = "Where is the {category}?"
CAPTION = "Describe the photograph in one sentence."


class PhotoBoxes(Reader):
    """Asks where each category is; the evidence is every box of it. Asks for the caption, where there are some.

    A row is `{"file", "width", "height", "boxes": [{"category", "bbox": [x0, y0, x1, y1]}], "captions": [...]}`, in
    pixels; `captions` may be missing, and other keys are passed over. Captions count as source `<source>-captions`.

    Args:
        file: the list.
        images: the folder of the photographs.
        split: what the rows count as.
        source: the data set they come from.
        question: what is asked, with `{category}` in it.

    Raises:
        ValueError: the split is unknown, or the question names no category.
    """

    def __init__(
        self,
        file: str | Path,
        images: str | Path | None = None,
        split: str = "train",
        source: str = "photos",
        question: str = QUESTION,
    ) -> None:
        super().__init__(file, images)
        if "{category}" not in question:
            raise ValueError(f"question {question!r}: it must have {{category}} in it")
        self.split, self.source, self.question = split_of(split), source, question

    def __iter__(self) -> Iterator[Annotation | Rejected]:
        return unique_ids(super().__iter__())

    def parse(self, row: Any, number: int) -> Iterable[Annotation]:
        """An annotation per category, in the order of their first boxes."""
        file, size = text(row["file"], "image"), image_size(row)
        boxes: dict[str, list[Any]] = {}
        for box in row["boxes"]:
            boxes.setdefault(text(box["category"], "category"), []).append(box["bbox"])
        captions = tuple(text(caption, "caption") for caption in row.get("captions") or ())
        if not boxes and not captions:
            raise BadRow("no box", file)
        for category, found in boxes.items():
            yield Annotation(
                id=f"{PurePosixPath(file).stem}-{category.replace(' ', '_')}",
                question=self.question.replace("{category}", category),
                answers=(category,),
                source=self.source,
                split=self.split,
                image=file,
                boxes=pixel_boxes(found),
                size=size,
            )
        if captions:
            yield Annotation(
                id=f"{PurePosixPath(file).stem}-captions",
                question=CAPTION,
                answers=captions,
                source=f"{self.source}-captions",
                split=self.split,
                image=file,
                size=size,
            )
