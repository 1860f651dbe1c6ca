"""POPE: yes and no labels, one object per line in a file called `.json`, both versions of the random file."""

import json
import re
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cropl.data.readers.base import Annotation
from cropl.data.readers.pope import Pope
from tests.data.readers.conftest import of_recipe, sort

ROW: dict[str, Any] = {
    "question_id": 1,
    "image": "COCO_val2014_000000310196.jpg",
    "text": "Is there a snowboard in the image?",
    "label": "yes",
}


def file(folder: Path, *lines: Any, name: str = "coco_pope_random.json") -> Path:
    """The rows, one per line."""
    path = folder / name
    path.write_text("".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines))
    return path


def test_a_row(tmp_path: Path) -> None:
    (found,) = Pope(file(tmp_path, ROW))
    assert found == Annotation(
        id="1",
        question="Is there a snowboard in the image?",
        prompt="Is there a snowboard in the image?\nAnswer the question using a single word or phrase.",
        answers=("yes",),
        source="pope-random",
        split="test",
        image="COCO_val2014_000000310196.jpg",
        kind="existence",
    )


def test_the_source_is_the_files_category(tmp_path: Path) -> None:
    assert Pope("gqa_pope_popular.json").source == "pope-popular"
    assert Pope("coco_pope_popular.json", source="mine").source == "mine"
    assert Pope("other.json", source="mine").source == "mine"
    with pytest.raises(ValueError, match="pope.json: its name does not end in random"):
        Pope("pope.json")


@pytest.mark.parametrize(
    ("row", "reason"),
    [
        (ROW | {"text": " "}, "no question"),
        (ROW | {"label": "Yes"}, "the label is not yes or no"),
        (ROW | {"label": True}, "the label is not yes or no"),
        (ROW | {"image": ""}, "no image"),
        (ROW | {"question_id": ""}, "no question id"),
        ({key: ROW[key] for key in ("question_id", "image", "text")}, "key 'label' is missing"),
        ("[1, 2", "not JSON"),
        ("3", "malformed row"),
    ],
)
def test_bad_rows(tmp_path: Path, row: Any, reason: str) -> None:
    annotations, rejected = sort(Pope(file(tmp_path, ROW, row, ROW | {"question_id": 2, "label": "no"})))
    assert [(found.id, found.answers) for found in annotations] == [("1", ("yes",)), ("2", ("no",))]
    assert [(bad.where, bad.reason) for bad in rejected] == [("coco_pope_random.json, row 2", reason)]


def test_no_file_and_an_empty_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no such annotation file"):
        list(Pope(tmp_path / "coco_pope_random.json"))
    with pytest.raises(ValueError, match="the file is empty"):
        list(Pope(file(tmp_path)))


@pytest.mark.parametrize(
    ("category", "labels"),
    [
        ("adversarial", {"yes": 1500, "no": 1500}),
        ("popular", {"yes": 1500, "no": 1500}),
        ("random", {"yes": 1500, "no": 1410}),
    ],
)
def test_the_published_files(published: Callable[[str], Path], category: str, labels: dict[str, int]) -> None:
    path = published(f"pope/coco_pope_{category}.json")
    lines = path.read_text(encoding="utf-8").splitlines()
    readers = [
        of_recipe("data/pope", root=path.parent, category=category),
        of_recipe("data/pope", root=path.parent, file=path.name, source=f"pope-{category}"),
    ]
    annotations, rejected = sort(readers[0])
    assert list(readers[1]) == annotations and not rejected
    assert len(annotations) == len(lines) == len({found.id for found in annotations}) == sum(labels.values())
    assert Counter(found.answers[0] for found in annotations) == labels
    assert {found.source for found in annotations} == {f"pope-{category}"}
    pattern = re.compile(r'\{"question_id": (\d+), "image": "([^"]+)", "text": "([^"]+)", "label": "(yes|no)"\}')
    for line, found in zip(lines, annotations, strict=True):
        match = pattern.fullmatch(line.strip())
        assert match is not None and match.groups() == (found.id, found.image, found.question, found.answers[0])
        assert found.prompt == f"{match[3]}\nAnswer the question using a single word or phrase."


def test_the_3000_rows_of_the_newer_random_file(tmp_path: Path) -> None:
    rows = [ROW | {"question_id": number, "label": ("yes", "no")[number % 2]} for number in range(1, 3001)]
    annotations, rejected = sort(Pope(file(tmp_path, *rows)))
    assert not rejected
    assert Counter(found.answers[0] for found in annotations) == {"yes": 1500, "no": 1500}
