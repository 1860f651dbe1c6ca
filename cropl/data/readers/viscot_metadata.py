"""Visual-CoT's metadata: `*_cot_train.jsonl`, one question a line, with all its boxes and the size of its image."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cropl.data.readers.base import Annotation, Reader, image_size, pixel_boxes, split_of, text

FOLDERS = {"textcap": "textvqa"}
"""Sources whose images lie in another source's folder."""


class VisCotMetadata(Reader):
    """Questions with boxes in pixels of the original image. Boxes beyond it or without area are left so.

    Args:
        file: the lines; keys beyond the known ones are passed over.
        images: the folder that holds `cot/`, as for the conversations.
        split: what the rows count as; None for what they say themselves.
    """

    def __init__(self, file: str | Path, images: str | Path | None = None, split: str | None = None) -> None:
        super().__init__(file, images)
        self.split = split

    def parse(self, row: Any, number: int) -> Iterable[Annotation]:
        """One annotation; the rows have no ids, so it is named by its number."""
        source = text(row["dataset"], "dataset")
        yield Annotation(
            id=str(number),
            question=text(row["question"], "question"),
            answers=(text(row["answer"], "answer"),),
            source=source,
            split=split_of(row["split"] if self.split is None else self.split),
            image=f"cot/{FOLDERS.get(source, source)}/{text(row['image'], 'image')}",
            boxes=pixel_boxes(row["bboxs"]),
            size=image_size(row),
        )
