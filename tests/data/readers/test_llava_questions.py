"""LLaVA's question files: the bare question, the whole prompt, ids that are told apart, POPE's category kept."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cropl import recipe
from cropl.data.readers.base import Annotation, Reader, Rejected
from cropl.data.readers.llava_questions import LlavaQuestions
from tests.data.readers.conftest import sort

SHORT = "Answer the question using a single word or phrase."
ROW: dict[str, Any] = {
    "question_id": "003a",
    "image": "003a.jpg",
    "text": f"what does it say?\nReference OCR token: A, B\n{SHORT}",
    "category": "default",
}


def test_a_row(write: Callable[..., Path]) -> None:
    (found,) = LlavaQuestions(write([ROW], "llava_textvqa_val_v051_ocr.jsonl"), "textvqa", kind="text")
    assert found == Annotation(
        id="003a",
        question="what does it say?",
        prompt=f"what does it say?\nReference OCR token: A, B\n{SHORT}",
        answers=(),
        source="textvqa",
        split="val",
        image="003a.jpg",
        kind="text",
    )


@pytest.mark.parametrize(
    ("asked", "question"),
    [
        (f"Is it red?\n{SHORT}", "Is it red?"),
        (f"Is it red?\nReference OCR token: \n{SHORT}", "Is it red?"),
        (f"The sign says\n'stop'. Is it red?\n{SHORT}", "The sign says\n'stop'. Is it red?"),
        (f"Why 'Answer the question using wit'?\n{SHORT}", "Why 'Answer the question using wit'?"),
    ],
)
def test_the_question_ends_where_the_instructions_begin(write: Callable[..., Path], asked: str, question: str) -> None:
    (found,) = LlavaQuestions(write([ROW | {"text": asked}]), "any")
    assert isinstance(found, Annotation)
    assert (found.question, found.prompt) == (question, asked)


def test_a_question_without_instructions_is_its_own_prompt(write: Callable[..., Path]) -> None:
    (found,) = LlavaQuestions(write([ROW | {"text": "Is it red? "}]), "any")
    assert isinstance(found, Annotation)
    assert (found.question, found.prompt) == ("Is it red?", "")


def test_repeated_ids_are_told_apart_in_file_order(write: Callable[..., Path]) -> None:
    rows = [{"question_id": 7}, {}, {"question_id": 7}, {"question_id": "8"}, {"question_id": 7}]
    annotations, _ = sort(LlavaQuestions(write([ROW | row for row in rows]), "any"))
    assert [found.id for found in annotations] == ["7", "003a", "7-2", "8", "7-3"]


def test_the_category_is_kept_in_the_source_unless_the_id_has_it(write: Callable[..., Path]) -> None:
    mme = {"question_id": "code_reasoning/0020.png", "image": "code_reasoning/0020.png", "category": "code_reasoning"}
    nothing = {key: value for key, value in ROW.items() if key != "category"}
    rows = [ROW | {"category": "adversarial"}, ROW | mme, ROW, nothing]
    annotations, _ = sort(LlavaQuestions(write(rows), "bench"))
    assert [found.source for found in annotations] == ["bench-adversarial", "bench", "bench", "bench"]
    assert [found.id for found in annotations] == ["003a", "code_reasoning/0020.png", "003a-2", "003a-3"]


def test_the_split_is_val_where_the_file_says_so(write: Callable[..., Path]) -> None:
    names = ["llava_textvqa_val_v051_ocr", "llava_pope_test", "llava_vqav2_mscoco_test-dev2015", "llava_mme"]
    splits = [LlavaQuestions(f"{name}.jsonl", "any").split for name in names]
    assert splits == ["val", "test", "test", "test"]
    assert LlavaQuestions("llava_mme.jsonl", "any", split="train").split == "train"
    with pytest.raises(ValueError, match="unknown split: 'testdev'"):
        LlavaQuestions("llava_mme.jsonl", "any", split="testdev")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (ROW | {"text": ""}, "no question"),
        (ROW | {"text": None}, "no question"),
        (ROW | {"text": f"\n{SHORT}"}, "no question"),
        (ROW | {"image": None}, "no image"),
        (ROW | {"question_id": None}, "no question id"),
        (ROW | {"question_id": 1.5}, "no question id"),
        (ROW | {"category": None}, "no category"),
        ({"text": "Why?", "question_id": 1}, "key 'image' is missing"),
        ({"image": "a.jpg", "question_id": 1}, "key 'text' is missing"),
        ({"image": "a.jpg", "text": "Why?"}, "key 'question_id' is missing"),
        (["a", "list"], "malformed row"),
    ],
)
def test_bad_rows(write: Callable[..., Path], row: Any, reason: str) -> None:
    annotations, rejected = sort(LlavaQuestions(write([ROW, row, ROW]), "any"))
    assert [found.id for found in annotations] == ["003a", "003a-2"]
    assert [(bad.where, bad.reason) for bad in rejected] == [("rows.jsonl, row 2", reason)]


def test_a_line_that_is_not_json_is_one_bad_row(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text(f"{json.dumps(ROW)}\n{{half\n{json.dumps(ROW)}\n")
    found = list(LlavaQuestions(path, "any"))
    assert isinstance(found[1], Rejected) and found[1].reason == "not JSON"
    assert len(found) == 3 and isinstance(found[2], Annotation)


@pytest.mark.parametrize(
    ("name", "source", "count", "sources"),
    [
        ("llava_gqa_testdev_balanced.jsonl", "gqa", 12578, {"gqa": 12578}),
        ("llava_textvqa_val_v051_ocr.jsonl", "textvqa", 5000, {"textvqa": 5000}),
        (
            "llava_pope_test.jsonl",
            "pope",
            8910,
            {"pope-adversarial": 3000, "pope-popular": 3000, "pope-random": 2910},
        ),
    ],
)
def test_the_published_files(
    published: Callable[[str], Path], name: str, source: str, count: int, sources: dict[str, int]
) -> None:
    path = published(f"llava/{name}")
    raw = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    overrides = {"vars.root": str(path.parent), "vars.file": name, "vars.source": source}
    loaded = recipe.load(["data/llava_questions"], overrides)
    (reader,) = [recipe.instantiate(spec, "sources") for spec in loaded["sources"]]
    assert isinstance(reader, Reader) and loaded["out"] == f"shards/llava-{source}"
    annotations, rejected = sort(reader)
    assert not rejected and len(annotations) == len(raw) == count
    assert len({found.id for found in annotations}) == count
    assert Counter(found.source for found in annotations) == sources
    assert {found.split for found in annotations} == {"val" if source == "textvqa" else "test"}
    pattern = re.compile(
        r"([^\n]+)(\nReference OCR token: [^\n]*)?\nAnswer the question using a single word or phrase\."
    )
    for row, found in zip(raw, annotations, strict=True):
        match = pattern.fullmatch(row["text"])
        assert match is not None and (found.question, found.prompt) == (match[1], row["text"])
        assert (match[2] is not None) == (source == "textvqa")
        assert re.sub(r"-\d+$", "", found.id) == str(row["question_id"]) and found.image == row["image"]


def test_textvqa_repeats_its_ids(published: Callable[[str], Path]) -> None:
    annotations, _ = sort(LlavaQuestions(published("llava/llava_textvqa_val_v051_ocr.jsonl"), "textvqa"))
    assert sum(found.id.endswith("-2") for found in annotations) == 5000 - 3166
    assert not [found.id for found in annotations if found.id.endswith("-3")]
