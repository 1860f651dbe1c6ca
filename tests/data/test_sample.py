"""The sample record: a round trip, and every malformed field named."""

import json
from dataclasses import replace
from typing import Any

import pytest

from cropl.data.sample import Sample
from cropl.grid import Region


def sample() -> Sample:
    return Sample(
        key="a-1",
        question="What is it?",
        answers=["a dog", "dog"],
        boxes=[(1, 2.5, 30, 40)],
        width=100,
        height=80,
        region=Region(0, 0, 2, 3),
        kind="attribute",
        source="photos",
        split="test",
        image=b"jpeg",
        id="q/1",
        prompt="What is it? Answer in a word.",
        followups=[("What colour?", "brown")],
    )


def text_alone() -> Sample:
    return replace(sample(), image=None, width=0, height=0, boxes=[], region=Region.full(), answers=[])


def test_round_trip_through_json() -> None:
    record = json.loads(json.dumps(sample().to_json()))
    assert Sample.from_json(record, b"jpeg") == sample()
    assert Sample.from_json(record | {"thought": "ignored"}, b"jpeg") == sample()
    assert record["schema"] == 2 and record["followups"] == [["What colour?", "brown"]]
    record = json.loads(json.dumps(text_alone().to_json()))
    assert Sample.from_json(record, None) == text_alone()


def test_what_is_asked() -> None:
    assert sample().asked == "What is it? Answer in a word."
    assert sample().conversation == [("What is it? Answer in a word.", "a dog"), ("What colour?", "brown")]
    assert replace(sample(), prompt="").asked == "What is it?"
    with pytest.raises(ValueError, match="'a-1'.*no answer to train on"):
        _ = text_alone().conversation
    with pytest.raises(ValueError, match="'a-1'.*no image"):
        text_alone().picture()


def test_an_image_and_its_size_go_together() -> None:
    with pytest.raises(ValueError, match="sample 'a-1': width must be 0 without an image, got 100"):
        Sample.from_json(sample().to_json(), None)
    with pytest.raises(ValueError, match="sample 'a-1': width must be a positive integer, got 0"):
        Sample.from_json(text_alone().to_json(), b"jpeg")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("schema", 1),
        ("schema", "2"),
        ("schema", None),
        ("key", ""),
        ("question", "  "),
        ("question", None),
        ("answers", None),
        ("answers", "dog"),
        ("answers", [1]),
        ("boxes", [[1, 2, 3]]),
        ("boxes", [[1, 2, 3, float("nan")]]),
        ("boxes", [["1", 2, 3, 4]]),
        ("boxes", None),
        ("width", 0),
        ("width", 10.0),
        ("height", True),
        ("region", [0, 0, 1]),
        ("region", [0, 0, 1, 8]),
        ("region", [3, 0, 1, 7]),
        ("region", [0.0, 0, 1, 7]),
        ("region", [float("nan"), 0, 1, 7]),
        ("region", "0123"),
        ("kind", None),
        ("id", 7),
        ("prompt", None),
        ("followups", None),
        ("followups", [["What?"]]),
        ("followups", [["What?", 1]]),
        ("followups", ["ab"]),
    ],
)
def test_malformed_fields_are_named(key: str, value: Any) -> None:
    with pytest.raises(ValueError, match=key) as error:
        Sample.from_json(sample().to_json() | {key: value}, b"")
    assert "sample" in str(error.value)


@pytest.mark.parametrize("key", sorted(set(sample().to_json()) - {"schema"}))
def test_missing_keys_are_named(key: str) -> None:
    record = sample().to_json()
    del record[key]
    with pytest.raises(ValueError, match=rf"key '{key}' is missing"):
        Sample.from_json(record, b"")


def test_a_record_is_an_object() -> None:
    with pytest.raises(ValueError, match="object"):
        Sample.from_json([], b"")  # type: ignore[arg-type]
