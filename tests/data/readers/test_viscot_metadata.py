"""Visual-CoT's metadata: all boxes in pixels, the size as stated, and every bad row with its reason."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cropl.data.readers.base import Annotation
from cropl.data.readers.viscot_metadata import VisCotMetadata
from tests.data.readers.conftest import of_recipe, sort

ROW: dict[str, Any] = {
    "question": "Does the bird have a grey throat? ",
    "answer": "Yes",
    "image": "001.Albatross/a.jpg",
    "width": 500,
    "height": 336,
    "bboxs": [[139.0, 30.5, 292.0, 294.0], [-3, 10, 600, 5]],
    "dataset": "cub",
    "split": "train",
    "thought": "an unknown key",
}


def test_a_row(write: Callable[..., Path]) -> None:
    (found,) = VisCotMetadata(write([ROW]))
    assert found == Annotation(
        id="0",
        question="Does the bird have a grey throat?",
        answers=("Yes",),
        source="cub",
        split="train",
        image="cot/cub/001.Albatross/a.jpg",
        boxes=((139.0, 30.5, 292.0, 294.0), (-3, 10, 600, 5)),  # beyond the image and reversed, as published
        size=(500, 336),
    )
    assert VisCotMetadata(write([ROW]), images="data/viscot").images == Path("data/viscot")


def test_textcap_shares_the_images_of_textvqa(write: Callable[..., Path]) -> None:
    (found,) = VisCotMetadata(write([ROW | {"dataset": "textcap", "image": "b.jpg"}]), split="val")
    assert isinstance(found, Annotation)
    assert (found.image, found.source, found.split) == ("cot/textvqa/b.jpg", "textcap", "val")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"question": ""}, "no question"),
        ({"answer": None}, "no answer"),
        ({"image": " "}, "no image"),
        ({"dataset": 3}, "no dataset"),
        ({"split": "everything"}, "unknown split"),
        ({"width": 0}, "no size"),
        ({"height": 336.0}, "no size"),
        ({"bboxs": []}, "no box"),
        ({"bboxs": [[1, 2, 3]]}, "a box is not four numbers"),
        ({"bboxs": [[1, 2, 3, "4"]]}, "a box is not four numbers"),
        ({"bboxs": [[0.1, 0.2, 0.3, 0.4]]}, "boxes are normalised, pixels are expected"),
    ],
)
def test_bad_rows(write: Callable[..., Path], change: dict[str, Any], reason: str) -> None:
    annotations, rejected = sort(VisCotMetadata(write([ROW, ROW | change, ROW])))
    assert [found.id for found in annotations] == ["0", "2"]
    assert [(bad.where, bad.reason) for bad in rejected] == [("rows.jsonl, row 2", reason)]


def test_what_is_no_row(write: Callable[..., Path]) -> None:
    path = write([{key: value for key, value in ROW.items() if key != "bboxs"}, [1]])
    path.write_text(path.read_text() + "{broken\n")
    reasons = [bad.reason for bad in sort(VisCotMetadata(path))[1]]
    assert reasons == ["key 'bboxs' is missing", "malformed row", "not JSON"]
    with pytest.raises(ValueError, match="no such annotation file"):
        list(VisCotMetadata(path.with_name("absent.jsonl")))


@pytest.mark.parametrize(("name", "count"), [("vsr", 3376), ("sroie", 2486)])
def test_published_files(published: Callable[[str], Path], name: str, count: int) -> None:
    path = published(f"viscot/{name}_cot_train.jsonl")
    annotations, rejected = sort(of_recipe("data/viscot_metadata", root=path.parent, name=name))
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == count == len(annotations) and not rejected
    for found, row in zip(annotations, rows):
        assert np.array_equal(np.array(found.boxes, dtype=np.float64), np.array(row["bboxs"], dtype=np.float64))
        assert (found.question, found.answers) == (row["question"].strip(), (row["answer"].strip(),))
        assert found.image == f"cot/{name}/{row['image']}" and found.size == (row["width"], row["height"])
        assert (found.source, found.split) == (name, "train")
