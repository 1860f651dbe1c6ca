"""MME: both layouts of a task's folder, two questions per image, every bad file with its reason."""

from pathlib import Path

import pytest

from cropl.data.readers.base import Annotation
from cropl.data.readers.mme import COGNITION, PERCEPTION, Mme
from tests.data.readers.conftest import of_recipe, sort

APART = ("artwork", "celebrity", "landmark", "posters", "scene")
ASK = "Please answer yes or no."
TWO = f"Is there a dog in this image? {ASK}\tYes\nIs there a cat in this image?  {ASK}\tNo\n"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """All 14 tasks, one image each; five tasks keep texts and images apart."""
    root = tmp_path / "MME_Benchmark_release_version"
    (root / "eval_tool").mkdir(parents=True)
    (root / "eval_tool" / "readme.txt").write_text("no questions")
    for task in (*PERCEPTION, *COGNITION):
        texts, images = ("questions_answers_YN", "images") if task in APART else (".", ".")
        ending = "png" if task in COGNITION else "jpg"
        for place, name, content in ((texts, "0002.txt", TWO), (images, f"0002.{ending}", "")):
            (root / task / place).mkdir(parents=True, exist_ok=True)
            (root / task / place / name).write_text(content)
    return root


def test_all_tasks_in_order(folder: Path) -> None:
    reader = Mme(folder)
    annotations, rejected = sort(reader)
    assert not rejected and len(reader.files) == 14
    tasks = [*PERCEPTION, *COGNITION]
    assert [found.id for found in annotations] == [f"{task}/0002{end}" for task in tasks for end in ("", "-2")]
    images = {found.image for found in annotations}
    assert {"existence/0002.jpg", "code_reasoning/0002.png", "artwork/images/0002.jpg"} < images and len(images) == 14


def test_a_pair(folder: Path) -> None:
    first, second, *_ = Mme(folder)
    assert first == Annotation(
        id="existence/0002",
        question="Is there a dog in this image?",
        prompt="Is there a dog in this image?\nAnswer the question using a single word or phrase.",
        answers=("Yes",),
        source="mme",
        split="test",
        image="existence/0002.jpg",
    )
    assert isinstance(second, Annotation)
    assert (second.question, second.answers) == ("Is there a cat in this image?", ("No",))


def test_the_recipe_and_images_elsewhere(folder: Path, tmp_path: Path) -> None:
    reader = of_recipe("data/mme", root=folder)
    assert reader.images == folder and len(list(reader)) == 28
    (tmp_path / "photos" / "count").mkdir(parents=True)
    (tmp_path / "photos" / "count" / "0002.png").touch()
    annotations, rejected = sort(Mme(folder, tmp_path / "photos"))
    assert {found.image for found in annotations} == {"count/0002.png"}
    assert {bad.reason for bad in rejected} == {"no image to the questions"} and len(rejected) == 13


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("", "not two questions about the image"),
        (f"Is it? {ASK}\tYes\n", "not two questions about the image"),
        (TWO + TWO, "not two questions about the image"),
        (TWO.replace("\t", " "), "not a question, a tab, and Yes or No"),
        (TWO.replace("No\n", "Maybe\n"), "not a question, a tab, and Yes or No"),
        (f"{ASK}\tYes\nIs it? {ASK}\tNo", "no question"),
    ],
)
def test_a_bad_text_costs_the_pair(folder: Path, content: str, reason: str) -> None:
    (folder / "count" / "0002.txt").write_text(content)
    annotations, rejected = sort(Mme(folder))
    assert len(annotations) == 26
    assert [(bad.where, bad.reason) for bad in rejected] == [(f"{folder.name}, row 2", reason)]


def test_text_that_is_not_utf8_is_one_bad_row(folder: Path) -> None:
    (folder / "count" / "0002.txt").write_bytes(b"\xff\xfe")
    _, rejected = sort(Mme(folder))
    assert [bad.reason for bad in rejected] == ["malformed row"]


def test_a_task_that_is_not_there(folder: Path, tmp_path: Path) -> None:
    (folder / "OCR" / "0002.txt").unlink()
    (folder / "scene" / "questions_answers_YN" / "0002.txt").unlink()
    with pytest.raises(ValueError, match="no questions of OCR, scene; give the folder"):
        list(Mme(folder))
    with pytest.raises(ValueError, match="nowhere: no questions of OCR, artwork, "):
        list(Mme(tmp_path / "nowhere"))
