"""Visual Spatial Reasoning: a caption becomes a question, a label its answer."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cropl.data.readers.base import Annotation
from cropl.data.readers.vsr import Vsr
from tests.data.readers.conftest import of_recipe, sort

ROW: dict[str, Any] = {
    "image": "000000050403.jpg",
    "image_link": "http://images.cocodataset.org/train2017/000000050403.jpg",
    "caption": "The teddy bear is in front of the person.",
    "label": 1,
    "relation": "in front of",
    "subj": "teddy bear",
    "obj": "person",
    "annotator_id": 31,
    "vote_true_validator_id": "[2, 6]",
    "vote_false_validator_id": "[]",
}


def test_a_caption(write: Callable[..., Path]) -> None:
    first, second = Vsr(write([ROW, ROW | {"label": 0}], "dev.jsonl"))
    assert first == Annotation(
        id="0",
        question="Is it true that the teddy bear is in front of the person?",
        answers=("Yes",),
        source="vsr",
        split="val",
        image="000000050403.jpg",
        kind="relation",
    )
    assert isinstance(second, Annotation) and (second.id, second.answers) == ("1", ("No",))


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"label": 2}, "the label is neither 0 nor 1"),
        ({"label": "1"}, "the label is neither 0 nor 1"),
        ({"label": True}, "the label is neither 0 nor 1"),
        ({"caption": ""}, "no caption"),
        ({"image": None}, "no image"),
    ],
)
def test_bad_rows(write: Callable[..., Path], change: dict[str, Any], reason: str) -> None:
    annotations, rejected = sort(Vsr(write([ROW, ROW | change], "train.jsonl")))
    assert [one.split for one in annotations] == ["train"]
    assert [(one.where, one.reason) for one in rejected] == [("train.jsonl, row 2", reason)]


def test_a_key_that_is_missing(write: Callable[..., Path]) -> None:
    for key in ("image", "caption", "label"):
        path = write([{name: value for name, value in ROW.items() if name != key}], "test.jsonl")
        assert [one.reason for one in sort(Vsr(path))[1]] == [f"key {key!r} is missing"]


def test_the_split(write: Callable[..., Path]) -> None:
    assert of_recipe("data/vsr", name="random/dev").split == "val"  # type: ignore[attr-defined]
    path = write([ROW], "all_vsr_validated_data.jsonl")
    assert [one.split for one in sort(Vsr(path, split="test"))[0]] == ["test"]
    for split in (None, "all"):
        with pytest.raises(ValueError, match="which split is it.*train, val, dev, test"):
            Vsr(path, split=split)
