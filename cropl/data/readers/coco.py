"""COCO's `instances_*.json`: where in a photograph is each category of things?"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

from cropl.data.readers.base import BadRow, split_of_file
from cropl.data.readers.photos import QUESTION, PhotoBoxes
from cropl.data.readers.rows import json_rows


class CocoInstances(PhotoBoxes):
    """Asks where each category is; the evidence is every box of it, all instances and crowds.

    The file is three lists, images, annotations and categories, read one after the other. The boxes of all images are
    held in memory: some 200 MB for train2017.

    Args:
        file: `instances_train2017.json`, or another one of the format.
        images: the folder of the photographs, `train2017`.
        split: what the rows count as; by default what the file is named for.
        crowds: whether boxes around crowds (`iscrowd`) count. They hold many things at once; without them a region may
            leave some out, and a category that has no other box is not asked for.
        source, question: see `PhotoBoxes`.
    """

    streams: ClassVar[bool] = False

    def __init__(
        self,
        file: str | Path,
        images: str | Path | None = None,
        split: str | None = None,
        crowds: bool = True,
        source: str = "coco",
        question: str = QUESTION,
    ) -> None:
        super().__init__(file, images, split_of_file(Path(file), split), source, question)
        self.crowds = crowds

    def rows(self) -> Iterator[Any]:
        """Annotations that cannot be used as `BadRow`s, then the images in file order, as `PhotoBoxes` reads them.

        Raises:
            ValueError: as for any reader; or an image has no id, a category no id or name.
        """
        names = {number: category["name"] for number, category in self._by_id("categories")}
        images = dict(self._by_id("images"))
        boxes: dict[Any, list[dict[str, Any]]] = {number: [] for number in images}
        for annotation in json_rows(self.file, "annotations.item"):
            try:
                place = boxes[annotation["image_id"]]
                box = {"category": names[annotation["category_id"]], "bbox": _corners(annotation["bbox"])}
                if self.crowds or not annotation.get("iscrowd", 0):
                    place.append(box)
            except (KeyError, TypeError, ValueError) as error:
                yield BadRow("malformed annotation", f"{_named(annotation)}: {type(error).__name__}: {error}"[:200])
        for number, image in images.items():
            yield {**image, "file": image.get("file_name"), "boxes": boxes.pop(number)}

    def _by_id(self, what: str) -> Iterator[tuple[Any, dict[str, Any]]]:
        for record in json_rows(self.file, f"{what}.item"):
            named = isinstance(record, dict) and (what == "images" or isinstance(record.get("name"), str))
            if not named or not isinstance(record.get("id"), int | str):
                raise ValueError(f"{self.file}: {what} hold {str(record)[:80]!r}, which is not as COCO publishes them")
            yield record["id"], record


def _corners(bbox: Any) -> list[Any]:
    """COCO publishes `[x, y, width, height]`."""
    x, y, width, height = bbox
    return [x, y, x + width, y + height]


def _named(annotation: Any) -> str:
    return f"annotation {annotation.get('id')}" if isinstance(annotation, dict) else "an annotation"
