"""ScienceQA in its publishers' format: LLaVA's prompt, the letter of the answer, splits, and every bad row."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cropl import recipe
from cropl.data.readers.base import Annotation
from cropl.data.readers.scienceqa import ScienceQA
from tests.data.readers.conftest import sort

Write = Callable[..., Path]

PROBLEM: dict[str, Any] = {
    "question": "Which is farther north?",
    "choices": ["the lake", "the hill", "the wood"],
    "answer": 1,
    "hint": "Look at the map.\nNorth is up. ",
    "image": "image.png",
    "lecture": "",
    "split": "test",
}


def scienceqa(write: Write, problems: Any, splits: Any, split: str = "test") -> ScienceQA:
    """The reader of two files."""
    return ScienceQA(write(problems, "problems.json"), write(splits, "pid_splits.json"), split=split)


def test_scienceqa(write: Write) -> None:
    reader = scienceqa(write, {"5": PROBLEM}, {"test": ["5"]})
    assert [path.name for path in reader.files] == ["problems.json", "pid_splits.json"]
    assert list(reader) == [
        Annotation(
            id="5",
            question="Which is farther north?",
            prompt="Context: Look at the map.\nNorth is up.\n"
            "Which is farther north?\nA. the lake\nB. the hill\nC. the wood\n"
            "Answer with the option's letter from the given choices directly.",
            answers=("B",),
            source="scienceqa",
            split="test",
            image="test/5/image.png",
            kind="choice",
        )
    ]


def test_scienceqa_without_hint_and_image(write: Write) -> None:
    problem = PROBLEM | {"hint": "", "image": None, "answer": 0}
    (found,) = scienceqa(write, {"5": problem}, {"test": ["5"]})
    assert isinstance(found, Annotation)
    assert found.prompt.startswith("Which is farther north?\nA. the lake\n")
    assert (found.image, found.answers) == (None, ("A",))


def test_scienceqa_splits(write: Write) -> None:
    problems = {str(number): PROBLEM | {"split": split} for number, split in enumerate(["train", "val", "test"])}
    splits = {"trainval": ["1", "0"], "minitest": ["2"]}
    annotations, _ = sort(scienceqa(write, problems, splits, "trainval"))
    assert [(found.split, found.image) for found in annotations] == [
        ("val", "val/1/image.png"),
        ("train", "train/0/image.png"),
    ]
    assert [only.image for only in sort(scienceqa(write, problems, splits, "minitest"))[0]] == ["test/2/image.png"]
    with pytest.raises(ValueError, match=r"no split 'test'; it has \['minitest', 'trainval'\]"):
        list(scienceqa(write, problems, splits))


@pytest.mark.parametrize(
    ("problem", "reason"),
    [
        (PROBLEM | {"question": None}, "no question"),
        (PROBLEM | {"answer": 3}, "the answer is none of the choices"),
        (PROBLEM | {"answer": -1}, "the answer is none of the choices"),
        (PROBLEM | {"answer": "B"}, "the answer is none of the choices"),
        (PROBLEM | {"choices": []}, "no choices"),
        (PROBLEM | {"choices": "abc"}, "no choices"),
        (PROBLEM | {"choices": [1, 2]}, "no choices"),
        (PROBLEM | {"image": ""}, "no image"),
        (PROBLEM | {"split": "mini"}, "unknown split"),
        ({key: PROBLEM[key] for key in PROBLEM if key != "hint"}, "key 'hint' is missing"),
        (None, "malformed row"),
    ],
)
def test_scienceqa_bad_rows(write: Write, problem: Any, reason: str) -> None:
    reader = scienceqa(write, {"1": PROBLEM, "2": problem, "3": PROBLEM}, {"test": ["1", "2", "4", "3"]})
    expected = [("problems.json, row 2", reason), ("problems.json, row 3", "not among the problems")]
    annotations, rejected = sort(reader)
    assert [found.id for found in annotations] == ["1", "3"]
    assert [(bad.where, bad.reason) for bad in rejected] == expected


def test_scienceqa_files_that_are_something_else(write: Write, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"nothing.json: no such annotation file"):
        list(ScienceQA(tmp_path / "nothing.json", tmp_path / "pid_splits.json"))
    with pytest.raises(ValueError, match=r"problems.json: not a JSON object"):
        list(scienceqa(write, [PROBLEM], {"test": ["0"]}))
    (tmp_path / "half.json").write_text('{"test": ["0"')
    with pytest.raises(ValueError, match=r"half.json: not JSON, or cut off"):
        list(ScienceQA(tmp_path / "half.json", tmp_path / "half.json"))


def test_the_recipe_reads_the_folder_it_describes(write: Write, tmp_path: Path) -> None:
    scienceqa(write, {"5": PROBLEM, "6": PROBLEM | {"image": None}}, {"test": ["6", "5"]})
    loaded = recipe.load(["data/scienceqa"], {"vars.root": str(tmp_path)})
    reader = recipe.instantiate(loaded["sources"][0], "sources")
    assert loaded["out"] == "shards/scienceqa-test" and reader.images == tmp_path / "images"
    assert [(found.id, found.image) for found in reader] == [("6", None), ("5", "test/5/image.png")]
