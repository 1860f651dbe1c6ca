"""GQA, TextVQA and VQAv2 in their publishers' formats: prompts, answers, splits, and every bad row."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from cropl import recipe
from cropl.data.readers.base import Annotation, Reader, Rejected
from cropl.data.readers.gqa import Gqa
from cropl.data.readers.textvqa import TextVqa
from cropl.data.readers.vqav2 import VqaV2
from tests.data.readers.conftest import sort

Write = Callable[..., Path]
SHORT = "\nAnswer the question using a single word or phrase."

GQA: dict[str, Any] = {
    "question": "Is it overcast?",
    "imageId": "n161313",
    "answer": "no",
    "isBalanced": True,
    "types": {"structural": "verify", "semantic": "global", "detailed": "weatherVerify"},
    "fullAnswer": "No, it is clear.",
}
TEXTVQA: dict[str, Any] = {
    "question_id": 34602,
    "question": "what is the brand of this camera?",
    "image_id": "003a8ae2ef43b901",
    "image_width": 1024,
    "image_height": 664,
    "answers": ["nous les gosses", *["dakota"] * 7, "clos culombu", "dakota digital"],
    "set_name": "val",
}
VQA: dict[str, Any] = {"question_id": 262148000, "image_id": 262148, "question": "Where is he looking?"}
ANSWERS: dict[str, Any] = {
    "question_id": 262148000,
    "multiple_choice_answer": "down",
    "answers": [{"answer": answer, "answer_confidence": "yes"} for answer in ["at table", "down", "table", "down"]],
}


def without(row: Mapping[str, Any], key: str) -> dict[str, Any]:
    """The row without a key."""
    return {name: value for name, value in row.items() if name != key}


def only(reader: Reader) -> Annotation:
    """The one annotation of a reader."""
    (found,) = reader
    assert isinstance(found, Annotation), found
    return found


def reasons(reader: Reader, good: int) -> list[tuple[str, str]]:
    """Which rows were rejected for what, once `good` others were read."""
    annotations, rejected = sort(reader)
    assert len(annotations) == good
    return [(bad.where, bad.reason) for bad in rejected]


def test_gqa(write: Write) -> None:
    reader = Gqa(write({"201307251": GQA}, "testdev_balanced_questions.json"), "images")
    assert only(reader) == Annotation(
        id="201307251",
        question="Is it overcast?",
        prompt=f"Is it overcast?{SHORT}",
        answers=("no",),
        source="gqa",
        split="test",
        image="n161313.jpg",
    )


@pytest.mark.parametrize(
    ("types", "kind"),
    [
        ({"semantic": "attr"}, "attribute"),
        ({"semantic": "rel"}, "relation"),
        ({"semantic": "obj"}, "existence"),
        ({"semantic": "cat"}, ""),
        ({}, ""),
        (None, ""),
    ],
)
def test_gqa_kinds(write: Write, types: Any, kind: str) -> None:
    assert only(Gqa(write({"1": GQA | {"types": types}}, "val_balanced_questions.json"))).kind == kind
    assert only(Gqa(write({"1": without(GQA, "types")}, "val_balanced_questions.json"))).kind == ""


def test_gqa_splits() -> None:
    names = ["testdev_balanced_questions.json", "train_balanced_questions.json", "val_balanced_questions.json"]
    assert [Gqa(name).split for name in names] == ["test", "train", "val"]
    assert Gqa("mine.json", split="val").split == "val"
    with pytest.raises(ValueError, match="mine: which split is it"):
        Gqa("mine.json")


@pytest.mark.parametrize(
    ("record", "reason"),
    [
        (GQA | {"question": ""}, "no question"),
        (GQA | {"answer": None}, "no answer"),
        (GQA | {"imageId": 3}, "no image"),
        (GQA | {"isBalanced": False}, "not a balanced question"),
        (without(GQA, "question"), "key 'question' is missing"),
        (without(GQA, "answer"), "key 'answer' is missing"),
        ("text", "malformed row"),
    ],
)
def test_gqa_bad_rows(write: Write, record: Any, reason: str) -> None:
    path = write({"1": GQA, "2": record, "3": GQA}, "testdev_balanced_questions.json")
    assert reasons(Gqa(path), good=2) == [(f"{path.name}, row 2", reason)]


def test_gqa_files_that_are_something_else(write: Write, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such annotation file"):
        list(Gqa(tmp_path / "val.json"))
    with pytest.raises(ValueError, match="no questions by id"):
        list(Gqa(write([GQA], "val.json")))
    whole = write({"1": GQA, "2": GQA}, "val.json").read_text()
    (tmp_path / "val.json").write_text(whole[:-20])
    found = iter(Gqa(tmp_path / "val.json"))
    assert isinstance(next(found), Annotation)
    with pytest.raises(ValueError, match="not JSON, or cut off"):
        list(found)


def test_textvqa(write: Write) -> None:
    found = only(TextVqa(write({"dataset_name": "textvqa", "data": [TEXTVQA]}, "TextVQA_0.5.1_val.json")))
    assert found == Annotation(
        id="34602",
        question="what is the brand of this camera?",
        prompt=f"what is the brand of this camera?{SHORT}",
        answers=(*["dakota"] * 7, "nous les gosses", "clos culombu", "dakota digital"),
        source="textvqa",
        split="val",
        image="003a8ae2ef43b901.jpg",
        size=(1024, 664),
        kind="text",
    )


def test_textvqa_has_no_answers_to_its_test_split(write: Write) -> None:
    row = without(TEXTVQA, "answers") | {"set_name": "test"}
    found = only(TextVqa(write({"data": [row]}, "TextVQA_0.5.1_test.json")))
    assert (found.answers, found.split) == ((), "test")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (TEXTVQA | {"question": " "}, "no question"),
        (TEXTVQA | {"question_id": None}, "no question id"),
        (TEXTVQA | {"image_id": ""}, "no image"),
        (TEXTVQA | {"image_width": "1024"}, "no size"),
        (TEXTVQA | {"answers": ["dakota"] * 9}, "not ten answers"),
        (TEXTVQA | {"answers": [None] * 10}, "not ten answers"),
        (TEXTVQA | {"set_name": "extra"}, "unknown split"),
        (without(TEXTVQA, "answers"), "key 'answers' is missing"),
        ([], "malformed row"),
    ],
)
def test_textvqa_bad_rows(write: Write, row: Any, reason: str) -> None:
    path = write({"data": [TEXTVQA, row, TEXTVQA]}, "val.json")
    assert reasons(TextVqa(path), good=2) == [("val.json, row 2", reason)]


def vqav2(write: Write, questions: list[Any], annotations: list[Any]) -> VqaV2:
    """The reader of two files."""
    files = write({"info": {}, "questions": questions}, "q.json"), write({"annotations": annotations}, "a.json")
    return VqaV2(*files)


def test_vqav2(write: Write) -> None:
    reader = vqav2(write, [VQA], [ANSWERS | {"question_id": 1}, ANSWERS])
    assert [path.name for path in reader.files] == ["q.json", "a.json"]
    assert only(reader) == Annotation(
        id="262148000",
        question="Where is he looking?",
        prompt=f"Where is he looking?{SHORT}",
        answers=("down", "down", "at table", "table"),
        source="vqav2",
        split="val",
        image="COCO_val2014_000000262148.jpg",
    )


def test_vqav2_without_annotations(write: Write) -> None:
    reader = VqaV2(write({"questions": [VQA]}, "q.json"), prefix="COCO_test2015_")
    found = only(reader)
    assert (found.answers, found.split, found.image) == ((), "test", "COCO_test2015_000000262148.jpg")
    assert len(reader.files) == 1
    assert VqaV2("q.json", prefix="", split="train").split == "train"
    with pytest.raises(ValueError, match="which split is it"):
        VqaV2("q.json", prefix="COCO_")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (VQA | {"question": ""}, "no question"),
        (VQA | {"image_id": "262148"}, "no image"),
        (VQA | {"question_id": 9}, "no annotation for the question"),
        (without(VQA, "question_id"), "key 'question_id' is missing"),
        ("text", "malformed row"),
    ],
)
def test_vqav2_bad_rows(write: Write, row: Any, reason: str) -> None:
    assert reasons(vqav2(write, [VQA, row, VQA], [ANSWERS]), good=2) == [("q.json, row 2", reason)]


@pytest.mark.parametrize(
    "annotation",
    [without(ANSWERS, "answers"), ANSWERS | {"answers": []}, ANSWERS | {"answers": [{"answer": 3}]}, "text"],
)
def test_vqav2_malformed_annotations_stop_it(write: Write, annotation: Any) -> None:
    with pytest.raises(ValueError, match=r"a\.json: an annotation is malformed"):
        list(vqav2(write, [VQA], [ANSWERS, annotation]))


def test_the_recipes_read_the_folders_they_describe(write: Write, tmp_path: Path) -> None:
    write({"1": GQA}, "testdev_balanced_questions.json")
    write({"data": [TEXTVQA]}, "TextVQA_0.5.1_val.json")
    write({"questions": [VQA]}, "v2_OpenEnded_mscoco_val2014_questions.json")
    write({"annotations": [ANSWERS]}, "v2_mscoco_val2014_annotations.json")
    write({"questions": [VQA]}, "v2_OpenEnded_mscoco_test-dev2015_questions.json")
    test_dev = {"vars.name": "test-dev2015", "vars.annotations": None, "vars.prefix": "COCO_test2015_"}
    found: dict[str, Annotation | Rejected] = {}
    for name, overrides in (("gqa", {}), ("textvqa", {}), ("vqav2", {}), ("vqav2", test_dev)):
        loaded = recipe.load([f"data/{name}"], {"vars.root": str(tmp_path), **overrides})
        (found[loaded["out"]],) = recipe.instantiate(loaded["sources"][0], "sources")
    assert {out: getattr(row, "split", row) for out, row in found.items()} == {
        "shards/gqa-testdev": "test",
        "shards/textvqa-val": "val",
        "shards/vqav2-val2014": "val",
        "shards/vqav2-test-dev2015": "test",
    }
