"""LLaVA's conversations: turns in order, the marker gone, sources told apart, and every bad row with its reason."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cropl.data.readers.base import Annotation
from cropl.data.readers.llava_instruct import LlavaInstruct
from tests.data.readers.conftest import of_recipe, sort


def row(*said: str, first: str = "human", image: str | None = "coco/train2017/1.jpg", **change: Any) -> dict[str, Any]:
    """A row whose turns alternate, from `first` on."""
    who = ["human", "gpt"] if first == "human" else ["gpt", "human"]
    turns = [{"from": who[i % 2], "value": text} for i, text in enumerate(said)]
    picture = {} if image is None else {"image": image}
    return {"id": "1", **picture, "conversations": turns} | change


def test_a_conversation(write: Callable[..., Path]) -> None:
    (found,) = LlavaInstruct(write([row("<image>\nWhat?", "A dog. ", "Its colour?", "Brown.")], "rows.json"))
    assert found == Annotation(
        id="1",
        question="What?",
        answers=("A dog.",),
        source="llava-coco",
        split="train",
        image="coco/train2017/1.jpg",
        followups=(("Its colour?", "Brown."),),
    )


def test_the_marker_may_stand_anywhere(write: Callable[..., Path]) -> None:
    asked = ["<image>\nWhat?\nIn a word.", "What?\nIn a word.\n<image>", "What?\n<image>In a word."]
    found, _ = sort(LlavaInstruct(write([row(question, "Dog") for question in asked])))
    assert [one.question for one in found] == ["What?\nIn a word."] * 3
    ((one,), _) = sort(LlavaInstruct(write([row("Hello", "Hi", "<image>\nWhat?", "Dog")])))
    assert one.followups == (("What?", "Dog"),)


def test_sources(write: Callable[..., Path]) -> None:
    images = ["coco/train2017/1.jpg", "gqa/images/1.jpg", "ocr_vqa/images/1.jpg", "textvqa/train_images/1.jpg"]
    images += ["vg/VG_100K/1.jpg", "vg/VG_100K_2/1.jpg", "1.jpg"]
    path = write([row("What?", "Dog", image=image) for image in [*images, None]])
    found, _ = sort(LlavaInstruct(path))
    sources = ["coco", "gqa", "ocr_vqa", "textvqa", "vg", "vg", "images", "text"]
    assert [one.source for one in found] == [f"llava-{source}" for source in sources]
    assert [one.image for one in found] == [*images, None]
    assert {one.source for one in sort(LlavaInstruct(path, source="mine"))[0]} == {"mine"}


def test_what_has_no_question_or_no_answer_is_dropped(write: Callable[..., Path]) -> None:
    rows = [row("Hi!", "What?", "Dog", first="gpt", image=None), row("What?", "Dog", "And?")]
    found, rejected = sort(LlavaInstruct(write(rows)))
    assert [(one.question, one.answers, one.followups) for one in found] == [("What?", ("Dog",), ())] * 2
    assert not rejected


def test_ids(write: Callable[..., Path]) -> None:
    rows = [row("What?", "Dog", id=number) for number in ("1", 1, 17, "1")] + [row("What?", "Dog")]
    del rows[-1]["id"]
    found, _ = sort(LlavaInstruct(write(rows)))
    assert [one.id for one in found] == ["1", "1-2", "17", "1-3", "4"]


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (row(), "no answer"),
        (row("What?"), "no answer"),
        (row("Hi!", "What?", first="gpt"), "no answer"),
        (row("<image>", "Dog"), "no question"),
        (row("What?", "Dog", "", "Cat"), "no question"),
        (row("What?", " "), "no answer"),
        (row("What?", "Dog", image=""), "no image"),
        (row("What?", "Dog") | {"image": None}, "no image"),
        (row("<image>\nWhat?", "Dog", image=None), "an image marker that means no image"),
        (row("What?", "<image>"), "an image marker that means no image"),
        (row("What?", "Dog", first="gpt"), "no answer"),
        (
            row(conversations=[{"from": "human", "value": "a"}, {"from": "human", "value": "b"}]),
            "human and gpt do not take turns",
        ),
        (row(conversations=[{"from": "system", "value": "a"}]), "human and gpt do not take turns"),
        (row("What?", "Dog", conversations=None), "malformed row"),
        (row(conversations=[{"value": "a"}]), "key 'from' is missing"),
        ({"id": 1}, "key 'conversations' is missing"),
        ("text", "malformed row"),
    ],
)
def test_bad_rows(write: Callable[..., Path], bad: Any, reason: str) -> None:
    annotations, rejected = sort(LlavaInstruct(write([row("What?", "Dog"), bad], "rows.json")))
    assert len(annotations) == 1
    assert [(one.where, one.reason) for one in rejected] == [("rows.json, row 2", reason)]


def test_a_file_that_breaks_off(write: Callable[..., Path]) -> None:
    path = write([row("What?", "Dog")] * 3, "rows.json")
    path.write_text(path.read_text()[:-20])
    with pytest.raises(ValueError, match="cut off"):
        list(LlavaInstruct(path))


def test_the_published_sample(published: Callable[[str], Path]) -> None:
    path = published("llava/llava_v1_5_mix1k.jsonl")
    annotations, rejected = sort(of_recipe("data/llava_instruct", root=path.parent, name=path.name))
    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == 1000 == len(annotations) == len({found.id for found in annotations}) and not rejected
    for found, raw in zip(annotations, rows):
        said = [turn["value"].replace("<image>", "").strip() for turn in raw["conversations"]]
        flat = [found.question, *found.answers, *(text for turn in found.followups for text in turn)]
        assert flat == said and found.image == raw["image"]
        assert found.id.split("-")[0] == str(raw["id"]).split("-")[0]
    counts = {"coco": 591, "vg": 133, "gqa": 122, "ocr_vqa": 122, "textvqa": 32}
    sources = [found.source for found in annotations]
    assert {source: sources.count(source) for source in sources} == {f"llava-{k}": n for k, n in counts.items()}
