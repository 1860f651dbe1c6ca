"""Questions to evaluate on: all that the files have, images as paths with their displayed size, or a named error."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from cropl.data import published as module
from cropl.data.published import questions
from cropl.data.readers.gqa import Gqa
from cropl.data.readers.llava_questions import LlavaQuestions
from cropl.data.readers.pope import Pope
from cropl.errors import UsageError
from tests.data.readers.conftest import published as published

ROW = {"question": "Is it?", "imageId": "a", "answer": "no", "types": {"semantic": "attr"}}


def picture(path: Path, size: tuple[int, int] = (40, 30), turned: bool = False) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = 6 if turned else 1
    Image.new("RGB", size, "red").save(path, exif=exif)


def gqa(folder: Path, rows: dict[str, Any]) -> dict[str, Any]:
    """A recipe's source."""
    path = folder / "testdev_balanced_questions.json"
    path.write_text(json.dumps(rows))
    arguments = {"file": str(path), "images": str(folder / "images")}
    return {"class_path": "cropl.data.readers.gqa.Gqa", "init_args": arguments}


def test_images_are_paths_and_sizes_are_as_displayed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    picture(tmp_path / "images/a.jpg")
    picture(tmp_path / "images/b.jpg", (40, 30), turned=True)
    source = gqa(tmp_path, {"7": ROW, "8": ROW | {"imageId": "b"}, "9": ROW | {"question": "Or not?"}})
    read: list[Path] = []
    header = module.image_size
    monkeypatch.setattr(module, "image_size", lambda path: read.append(path) or header(path))
    found = questions([source], count=3)
    assert [sample.id for sample in found] == ["7", "8", "9"] and len({sample.key for sample in found}) == 3
    assert (
        [(one.width, one.height) for one in found]
        == [(40, 30), (30, 40), (40, 30)]
        == [one.picture().size for one in found]
    )
    assert sorted(read) == [tmp_path / "images/a.jpg", tmp_path / "images/b.jpg"]  # each once
    assert all(isinstance(one.image, Path) and one.region.as_tuple() == (0, 0, 7, 7) for one in found)
    assert (found[0].kind, found[0].source, found[0].answers) == ("attribute", "gqa", ["no"])
    assert [sample.key for sample in questions([Gqa(**source["init_args"])])] == [sample.key for sample in found]


def test_several_files_and_text_alone(tmp_path: Path) -> None:
    picture(tmp_path / "images/test/5/image.png", (20, 50))
    problem = {"question": "Which?", "choices": ["a", "b"], "answer": 1, "hint": "", "split": "test"}
    problems = {"5": problem | {"image": "image.png"}, "6": problem | {"image": None}}
    (tmp_path / "problems.json").write_text(json.dumps(problems))
    (tmp_path / "pid_splits.json").write_text(json.dumps({"test": ["6", "5"]}))
    arguments = {"problems": tmp_path / "problems.json", "splits": tmp_path / "pid_splits.json"}
    spec = {
        "class_path": "cropl.data.readers.scienceqa.ScienceQA",
        "init_args": arguments | {"images": tmp_path / "images"},
    }
    alone, shown = questions([spec])
    assert (alone.image, alone.width, alone.height) == (None, 0, 0)
    assert (shown.width, shown.height) == (20, 50)
    asked = {"question_id": 1, "image": "5/image.png", "text": "Is there?", "label": "yes"}
    files = []
    for category in ("random", "popular"):
        files.append(tmp_path / f"coco_pope_{category}.json")
        files[-1].write_text(json.dumps(asked) + "\n")
    both = questions([Pope(file, tmp_path / "images/test") for file in files], count=[2, 9])
    assert [one.source for one in both] == ["pope-random", "pope-popular"] and both[0].key != both[1].key


def test_nothing_is_left_out(tmp_path: Path) -> None:
    picture(tmp_path / "images/a.jpg")
    (tmp_path / "images/b.jpg").write_bytes(b"no image")
    for rows, says in [
        ({"7": ROW, "8": ROW | {"answer": ""}}, r"1 of 2 .*testdev_balanced_questions.json, row 2: no answer"),
        ({"7": ROW, "8": ROW | {"imageId": "c"}}, r"1 of 2 .*gqa, question 8: the image is missing: .*c\.jpg"),
        ({"7": ROW, "8": ROW | {"imageId": "b"}}, r"gqa, question 8: the image cannot be used: .*b\.jpg"),
        ({"7": ROW, "8": ROW | {"imageId": "../b"}}, r"question 8: the image path leaves the folder"),
    ]:
        with pytest.raises(ValueError, match=says):
            questions([gqa(tmp_path, rows)])
    source = gqa(tmp_path, {"7": ROW})
    with pytest.raises(ValueError, match=r"1 questions, not 12,578; are these the published files"):
        questions([source], count=12578)
    with pytest.raises(ValueError, match=r"gqa, question 7 is about a\.jpg: give the reader's folder"):
        questions([Gqa(source["init_args"]["file"])])
    with pytest.raises(UsageError, match=r"sources\[0\]: list is no reader"):
        questions([{"class_path": "builtins.list"}])


@pytest.mark.parametrize(
    ("name", "source", "counts"),
    [
        ("llava_gqa_testdev_balanced", "gqa", {"gqa": 12578}),
        ("llava_textvqa_val_v051_ocr", "textvqa", {"textvqa": 5000}),
        ("llava_pope_test", "pope", {"pope-adversarial": 3000, "pope-popular": 3000, "pope-random": 2910}),
    ],
)
def test_llavas_question_files_are_asked_word_for_word(
    name: str,
    source: str,
    counts: dict[str, int],
    published: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Byte for byte; images are not at hand, and every one has its header read once."""
    path = published(f"llava/{name}.jsonl")
    raw = [json.loads(line) for line in path.read_bytes().splitlines()]
    read: list[Path] = []
    monkeypatch.setattr(module, "image_size", lambda path: read.append(path) or (640, 480))
    found = questions([LlavaQuestions(path, source, tmp_path)], count=sum(counts.values()))
    assert [sample.asked.encode() for sample in found] == [row["text"].encode() for row in raw]
    assert [sample.image for sample in found] == [tmp_path / row["image"] for row in raw]
    assert Counter(sample.source for sample in found) == counts
    assert len(read) == len(set(read)) == len({row["image"] for row in raw})
    empty = sum("\nReference OCR token: \n" in sample.asked for sample in found)
    assert empty == (115 if source == "textvqa" else 0)


def test_our_own_prompts_are_llavas(published: Callable[[str], Path], tmp_path: Path, monkeypatch: Any) -> None:
    """POPE's label files and GQA's questions, as our readers ask them, against LLaVA's files of the same questions."""
    monkeypatch.setattr(module, "image_size", lambda path: (640, 480))
    theirs = [json.loads(line) for line in published("llava/llava_pope_test.jsonl").read_bytes().splitlines()]
    for category in ("adversarial", "popular", "random"):
        ours = questions([Pope(published(f"pope/coco_pope_{category}.json"), tmp_path)])
        mine = [row for row in theirs if row["category"] == category]
        assert [(one.asked.encode(), one.image) for one in ours] == [
            (row["text"].encode(), tmp_path / row["image"]) for row in mine
        ]
    asked = [json.loads(line) for line in published("llava/llava_gqa_testdev_balanced.jsonl").read_bytes().splitlines()]
    records = {
        row["question_id"]: ROW | {"question": row["text"].split("\n")[0], "imageId": row["image"].removesuffix(".jpg")}
        for row in asked
    }
    ours = questions([gqa(tmp_path, records)], count=12578)
    assert [(one.id, one.asked.encode(), one.image) for one in ours] == [
        (row["question_id"], row["text"].encode(), tmp_path / "images" / row["image"]) for row in asked
    ]
