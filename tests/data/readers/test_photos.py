"""A list of photographs: a question per category, with all its boxes."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cropl.data.readers.base import Annotation
from cropl.data.readers.photos import PhotoBoxes
from tests.data.readers.conftest import of_recipe, sort


def box(category: Any = "wine glass", bbox: Any = (382.48, 0.0, 639.28, 474.31)) -> dict[str, Any]:
    return {"category": category, "bbox": list(bbox)}


def photo(*boxes: dict[str, Any], **change: Any) -> dict[str, Any]:
    return {"file": "a.jpg", "width": 640, "height": 480, "license": "CC BY 2.0", "boxes": list(boxes)} | change


def test_a_question_per_category(write: Callable[..., Path]) -> None:
    rows = [photo(box(), box("cake", (1, 2, 30, 40)), box(bbox=(5, 6, 70, 80)))]
    glass, cake = PhotoBoxes(write(rows, "photos.json"))
    assert glass == Annotation(
        id="a-wine_glass",
        question="Where is the wine glass?",
        answers=("wine glass",),
        source="photos",
        split="train",
        image="a.jpg",
        boxes=((382.48, 0.0, 639.28, 474.31), (5, 6, 70, 80)),
        size=(640, 480),
    )
    assert isinstance(cake, Annotation) and (cake.id, cake.boxes) == ("a-cake", ((1, 2, 30, 40),))


def test_what_may_be_chosen(write: Callable[..., Path]) -> None:
    path = write([photo(box())], "photos.json")
    (found,) = PhotoBoxes(path, split="val", source="mine", question="Find a {category}.")
    assert isinstance(found, Annotation)
    assert (found.split, found.source, found.question) == ("val", "mine", "Find a wine glass.")
    with pytest.raises(ValueError, match=re.escape("'Where?': it must have {category} in it")):
        PhotoBoxes(path, question="Where?")
    with pytest.raises(ValueError, match="unknown split"):
        PhotoBoxes(path, split="all")


def test_a_photograph_that_is_listed_twice(write: Callable[..., Path]) -> None:
    found, _ = sort(PhotoBoxes(write([photo(box("cake")), photo(box("cake"))], "photos.json")))
    assert [one.id for one in found] == ["a-cake", "a-cake-2"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (photo(), "no box"),
        (photo(box(), box(bbox=(1, 2, 3))), "a box is not four numbers"),
        (photo(box(bbox=(0.1, 0.2, 0.3, 0.4))), "boxes are normalised, pixels are expected"),
        (photo(box(category="")), "no category"),
        (photo({"category": "cake"}), "key 'bbox' is missing"),
        (photo(box(), file=None), "no image"),
        (photo(box(), width="640"), "no size"),
        (photo(box(), boxes=3), "malformed row"),
        ([], "malformed row"),
    ],
)
def test_bad_rows(write: Callable[..., Path], bad: Any, reason: str) -> None:
    annotations, rejected = sort(PhotoBoxes(write([photo(box()), bad], "photos.json")))
    assert len(annotations) == 1  # a photograph with one bad box is left out as a whole
    assert [(one.where, one.reason) for one in rejected] == [("photos.json, row 2", reason)]


def test_the_published_photographs(published: Callable[[str], Path]) -> None:
    path = published("photos/photos.json")
    annotations, rejected = sort(of_recipe("data/photos", root=path.parent))
    photos = json.loads(path.read_text(encoding="utf-8"))
    captions = [one for one in annotations if one.source == "photos-captions"]
    annotations = [one for one in annotations if one.source == "photos"]
    assert len(photos) == len(captions) == 25 and not rejected
    for one, raw in zip(captions, photos):
        assert one.image == raw["file"] and one.answers == tuple(text.strip() for text in raw["captions"])
        assert not one.boxes and one.size == (raw["width"], raw["height"])
    pairs = [(photo, name) for photo in photos for name in dict.fromkeys(each["category"] for each in photo["boxes"])]
    assert len(annotations) == len(pairs) == 75
    for found, (raw, name) in zip(annotations, pairs):
        boxes = np.array([each["bbox"] for each in raw["boxes"] if each["category"] == name], dtype=np.float64)
        assert np.array_equal(np.array(found.boxes, dtype=np.float64), boxes)
        assert (found.image, found.size) == (raw["file"], (raw["width"], raw["height"]))
        assert (found.question, found.answers) == (f"Where is the {name}?", (name,))
