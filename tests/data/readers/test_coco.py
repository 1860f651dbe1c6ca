"""COCO's instances: corners instead of sizes, all boxes of a category together, crowds as one likes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cropl.data.readers.base import Annotation
from cropl.data.readers.coco import CocoInstances
from tests.data.readers.conftest import of_recipe, sort


def instance(number: int, image: Any = 9, category: Any = 1, bbox: Any = (1, 2, 30, 40), crowd: int = 0) -> dict:
    polygon = {"size": [480, 640], "counts": [3, 4]} if crowd else [[1.5, 2, 30, 40]]
    return {
        "segmentation": polygon,
        "area": 12.5,
        "iscrowd": crowd,
        "image_id": image,
        "bbox": list(bbox),
        "category_id": category,
        "id": number,
    }


def coco(*annotations: Any, **change: Any) -> dict[str, Any]:
    images = [{"license": 3, "file_name": f"{i:012d}.jpg", "height": 480, "width": 640, "id": i} for i in (9, 25)]
    names = {1: "person", 44: "bottle", 46: "wine glass"}
    return {
        "info": {"year": 2017},
        "licenses": [],
        "images": images,
        "annotations": list(annotations),
        "categories": [{"supercategory": "x", "id": number, "name": name} for number, name in names.items()],
    } | change


NAME = "instances_val2017.json"


def test_all_boxes_of_a_category_make_one_question(write: Callable[..., Path]) -> None:
    found = [instance(1, 25, 46, (0.5, 2, 30, 40.25)), instance(2), instance(3, 25, 1), instance(4, 25, 46)]
    first, glass, person = CocoInstances(write(coco(*found), NAME), images="val2017")
    assert glass == Annotation(
        id="000000000025-wine_glass",
        question="Where is the wine glass?",
        answers=("wine glass",),
        source="coco",
        split="val",
        image="000000000025.jpg",
        boxes=((0.5, 2, 30.5, 42.25), (1, 2, 31, 42)),
        size=(640, 480),
    )
    assert isinstance(first, Annotation) and isinstance(person, Annotation)
    assert (first.id, person.id) == ("000000000009-person", "000000000025-person")


def test_crowds(write: Callable[..., Path]) -> None:
    found = [instance(1), instance(2, bbox=(0, 0, 600, 400), crowd=1), instance(3, category=44, crowd=1)]
    path = write(coco(*found, instance(4, 25)), NAME)
    with_crowds, _ = sort(CocoInstances(path))
    assert [(one.id[-8:], len(one.boxes)) for one in with_crowds] == [("9-person", 2), ("9-bottle", 1), ("5-person", 1)]
    without, _ = sort(CocoInstances(path, crowds=False))
    assert [(one.id[-8:], one.boxes) for one in without] == [
        ("9-person", ((1, 2, 31, 42),)),
        ("5-person", ((1, 2, 31, 42),)),
    ]


@pytest.mark.parametrize(
    ("bad", "detail"),
    [
        (instance(7, image=10), "annotation 7: KeyError: 10"),
        (instance(7, category=99), "annotation 7: KeyError: 99"),
        (instance(7, bbox=(1, 2, 3)), "annotation 7: ValueError"),
        (instance(7, bbox=(1, 2, "a", 3)), "annotation 7: TypeError"),
        (instance(7, image=[9]), "annotation 7: TypeError"),
        ({"id": 7}, "annotation 7: KeyError: 'image_id'"),
        (3, "an annotation: TypeError"),
    ],
)
def test_bad_annotations(write: Callable[..., Path], bad: Any, detail: str) -> None:
    annotations, rejected = sort(CocoInstances(write(coco(instance(1), bad, instance(2, 25)), NAME)))
    assert len(annotations) == 2
    assert [one.reason for one in rejected] == ["malformed annotation"] and rejected[0].detail.startswith(detail)


def test_bad_images(write: Callable[..., Path]) -> None:
    images = coco()["images"]
    for change, reason in [({"file_name": ""}, "no image"), ({"width": 0}, "no size")]:
        path = write(coco(instance(1), instance(2, 25), images=[images[0] | change, images[1]]), NAME)
        annotations, rejected = sort(CocoInstances(path))
        assert len(annotations) == 1 and [one.reason for one in rejected] == [reason]
    annotations, rejected = sort(CocoInstances(write(coco(instance(1)), NAME)))
    assert len(annotations) == 1 and [(one.reason, one.detail) for one in rejected] == [("no box", "000000000025.jpg")]


def test_files_that_are_something_else(write: Callable[..., Path]) -> None:
    for key in ("images", "annotations", "categories"):
        with pytest.raises(ValueError, match=f"no rows at '{key}.item'"):
            list(CocoInstances(write(coco(instance(1)) | {key: []}, NAME)))
    for change in ({"images": [{"id": [9]}]}, {"images": ["a"]}, {"categories": [{"id": 1}]}):
        with pytest.raises(ValueError, match="not as COCO publishes them"):
            list(CocoInstances(write(coco(instance(1), **change), NAME)))
    with pytest.raises(ValueError, match="which split is it"):
        CocoInstances(write(coco(), "instances.json"))
    assert CocoInstances(write(coco(), "instances.json"), split="train").split == "train"


def test_the_recipe() -> None:
    reader = of_recipe("data/coco", root="coco", name="val2017")
    assert isinstance(reader, CocoInstances) and reader.crowds and reader.split == "val"
    assert reader.files == [Path("coco/annotations") / NAME] and reader.images == Path("coco/val2017")


def test_photographs_of_coco(published: Callable[[str], Path], write: Callable[..., Path]) -> None:
    """The published photographs, written as COCO publishes them: `[x, y, width, height]`, shuffled."""
    photos = json.loads(published("photos/photos.json").read_text(encoding="utf-8"))
    names = sorted({box["category"] for photo in photos for box in photo["boxes"]})
    kept = ("width", "height")
    images = [
        {"id": i, "file_name": photo["file"], **{name: photo[name] for name in kept}} for i, photo in enumerate(photos)
    ]
    flat = [(i, box) for i, photo in enumerate(photos) for box in photo["boxes"]]
    found = []
    for number in np.random.default_rng(0).permutation(len(flat)):
        image, box = flat[number]
        x0, y0, x1, y1 = box["bbox"]
        found.append(instance(int(number), image, names.index(box["category"]), (x0, y0, x1 - x0, y1 - y0)))
    categories = [{"id": i, "name": name} for i, name in enumerate(names)]
    path = write({"images": images, "annotations": found, "categories": categories}, NAME)
    annotations, rejected = sort(CocoInstances(path))
    assert len(annotations) == 75 and len(rejected) == sum(not photo["boxes"] for photo in photos)
    for one in annotations:
        (photo,) = (photo for photo in photos if photo["file"] == one.image)
        expected = [box["bbox"] for box in photo["boxes"] if box["category"] == one.answers[0]]
        assert np.allclose(sorted(one.boxes), sorted(expected), rtol=0, atol=1e-9)
