"""Visual-CoT's conversations: the pixels of the suffix, the bare question, and a size that fits the published box."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from cropl import recipe
from cropl.data.readers.base import Annotation
from cropl.data.readers.viscot_conversations import VisCotConversations, likely_size
from tests.data.readers.conftest import of_recipe, sort

REQUEST = "Please provide the bounding box coordinate of the region that can help you answer the question better."


def row(**change: Any) -> dict[str, Any]:
    image = "cot/cub/001.Albatross/a.jpg"
    return {
        "dataset": "cub",
        "split": "val",
        "question_id": 7,
        "image": [image, image + change.pop("suffix", "###[141, 87, 397, 298]")],
        "conversations": turns(),
    } | change


def turns(question: str = f"<image>\nBlue breast? {REQUEST}", answer: str = "No") -> list[dict[str, str]]:
    said = [("human", question), ("gpt", "[0.282, 0.316, 0.794, 0.738]"), ("human", "<image>"), ("gpt", answer)]
    return [{"from": who, "value": what} for who, what in said]


def fractions(box: np.ndarray, width: int, height: int) -> np.ndarray:
    """A box `(x0, y0, x1, y1)` in pixels, in fractions of the image in the middle of a square: float64 (4,)."""
    side = max(width, height)
    left, top = (side - width) // 2, (side - height) // 2
    return (box.astype(np.float64) + np.array([left, top, left, top])) / side


def misfit(found: Annotation, text: str) -> float:
    """By how much the published fractions leave what the cut pixels allow in an image of the likely size."""
    assert found.likely_size is not None, found
    width, height = found.likely_size
    box, parts = np.array(found.boxes[0]), np.array([float(part) for part in re.findall(r"[\d.]+", text)])
    low, high = fractions(box, width, height), fractions(box + 1, width, height)
    return float(np.max([low - parts, parts - high]))


def test_a_row(write: Callable[..., Path]) -> None:
    (found,) = VisCotConversations(write([row()], "rows.json"))
    assert found == Annotation(
        id="7",
        question="Blue breast?",
        answers=("No",),
        source="cub",
        split="val",
        image="cot/cub/001.Albatross/a.jpg",
        boxes=((141, 87, 397, 298),),
        likely_size=(500, 360),
    )


def test_what_is_asked_comes_without_the_request(write: Callable[..., Path]) -> None:
    asked = [
        f"<image>\nWhere? {REQUEST}",
        f"Where?\n{REQUEST.replace('Please', 'Please think step by step and')}\n<image>",
        "<image>\nWhere?",
    ]
    found, _ = sort(VisCotConversations(write([row(conversations=turns(text)) for text in asked])))
    assert [one.question for one in found] == ["Where?"] * 3
    please = f"<image>\nPlease tell me: is it blue? {REQUEST}"
    ((one,), _) = sort(VisCotConversations(write([row(conversations=turns(please))])))
    assert one.question == "Please tell me: is it blue?"


def test_dirty_boxes_are_left_as_they_are(write: Callable[..., Path]) -> None:
    suffixes = ["###[400, 300, 10, 20]", "###[5, 5, 5, 5]", "###[-3, 0, 9000, 10]"]
    found, rejected = sort(VisCotConversations(write([row(suffix=suffix) for suffix in suffixes])))
    assert [one.boxes for one in found] == [((400, 300, 10, 20),), ((5, 5, 5, 5),), ((-3, 0, 9000, 10),)]
    assert not rejected and [one.likely_size for one in found] == [None] * 3  # nothing fits the published fractions


def test_ids_that_come_again(write: Callable[..., Path]) -> None:
    ids: list[Any] = [7, 7, "7-2", 7, None]
    rows = [row(question_id=number) for number in ids]
    del rows[-1]["question_id"]
    found, _ = sort(VisCotConversations(write(rows)))
    assert [one.id for one in found] == ["7", "7-2", "7-2-2", "7-3", "4"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"conversations": turns()[:2]}, "turns are not human, gpt, human, gpt"),
        ({"conversations": turns()[::-1]}, "turns are not human, gpt, human, gpt"),
        ({"conversations": turns(f"<image>\n{REQUEST}")}, "no question"),
        ({"conversations": turns(answer=" ")}, "no answer"),
        ({"suffix": ""}, "no box"),
        ({"suffix": "###[1, 2, 3]"}, "no box"),
        ({"image": []}, "malformed row"),
        ({"image": [None]}, "no image"),
        ({"dataset": ""}, "no dataset"),
        ({"split": "all"}, "unknown split"),
    ],
)
def test_bad_rows(write: Callable[..., Path], change: dict[str, Any], reason: str) -> None:
    annotations, rejected = sort(VisCotConversations(write([row(), row(**change)], "rows.json")))
    assert len(annotations) == 1
    assert [(bad.where, bad.reason) for bad in rejected] == [("rows.json, row 2", reason)]


def test_a_key_that_is_missing(write: Callable[..., Path]) -> None:
    for key in ("dataset", "split", "image", "conversations"):
        path = write([{name: value for name, value in row().items() if name != key}])
        assert [bad.reason for bad in sort(VisCotConversations(path))[1]] == [f"key {key!r} is missing"]


@given(st.data())
def test_the_likely_size_explains_any_box(data: st.DataObject) -> None:
    width, height = data.draw(st.integers(50, 2000)), data.draw(st.integers(50, 2000))
    edges = [data.draw(st.floats(least, side)) for least in (0, 4) for side in (width, height)]
    x, y = sorted(edges[::2]), sorted(edges[1::2])
    box = np.array([x[0], y[0], x[1], y[1]])
    published = "[" + ", ".join(f"{part:.3f}" for part in fractions(box, width, height)) + "]"
    cut = int(box[0]), int(box[1]), int(box[2]), int(box[3])
    found = Annotation("", "", (), "", "", boxes=(cut,), likely_size=likely_size(cut, published))
    assert misfit(found, published) <= 0.0005 + 1e-9


def test_a_likely_size_is_a_natural_one() -> None:
    assert likely_size((217, 343, 242, 393), "[0.542, 0.686, 0.592, 0.786]") == (391, 500)
    assert likely_size((646, 522, 711, 574), "[0.631, 0.729, 0.695, 0.779]") == (1024, 576)
    assert likely_size((0, 0, 246, 245), "[0.000, 0.000, 0.492, 0.490]") == (500, 500)
    assert likely_size((646, 522, 711, 574), "[0.631, 0.729, 0.695, 0.200]") is None
    assert likely_size((646, 522, 711, 574), "no box") is None


def test_the_mix_of_the_paper() -> None:
    mix, train = recipe.load(["data/crop_mix"]), recipe.load(["data/viscot_train"])
    assert sum(group["published"] for group in mix["groups"].values()) == 610_000
    assert sum(group["published"] for group in train["groups"].values()) == 410_000
    assert {name: mix["groups"][name] for name in train["groups"]} == train["groups"]
    assert set(mix["groups"]) - set(train["groups"]) == {"LLaVA"}
    sources = [source for group in train["groups"].values() for source in group["sources"]]
    photographs, texts = ["cub", "flickr30k", "gqa", "openimages", "v7w", "vsr"], ["docvqa", "infographicsvqa"]
    assert sorted(sources) == sorted([*photographs, *texts, "textcap", "textvqa"])
    assert mix["sources"][0] == train["sources"][0] and mix["sources"][1]["take"] == 200_000
    assert mix["sources"][1] == recipe.load(["data/llava_instruct_200k"])["sources"][0]


@pytest.mark.parametrize(("name", "count"), [("textvqa", 526), ("gqa", 978), ("vsr", 404), ("cub", 492)])
def test_published_benchmarks(published: Callable[[str], Path], name: str, count: int) -> None:
    path = published(f"viscot/benchmark_{name}.json")
    reader = of_recipe("data/viscot_benchmark", root=path.parent, name=name)
    assert isinstance(reader, VisCotConversations) and reader.images == path.parent
    annotations, rejected = sort(reader)
    rows = json.loads(path.read_text(encoding="utf-8"))
    assert len(rows) == count == len(annotations) and not rejected
    assert len({found.id for found in annotations}) == count
    for found, raw in zip(annotations, rows):
        numbers = np.array(re.findall(r"-?\d+", raw["image"][1].rpartition("###")[2]), dtype=np.float64)
        assert np.array_equal(np.array(found.boxes, dtype=np.float64), numbers[None])
        first, box, _, last = (turn["value"] for turn in raw["conversations"])
        assert first == f"<image>\n{found.question} {REQUEST}" and found.answers == (last.strip(),)
        assert found.image == raw["image"][0] and found.id == str(raw["question_id"])
        assert (found.source, found.split, found.size) == (name, "val", None)
        assert misfit(found, box) <= 0.0005 + 1e-9, (found.boxes, found.likely_size, box)
