"""Batches of samples with pictures and without."""

from __future__ import annotations

import pickle

import pytest
import torch
from PIL import Image

from cropl.data.collate import Prepared, SampleCollate
from cropl.data.sample import Sample
from cropl.grid import Region, TokenGrid


def prepare(picture: Image.Image) -> Prepared:
    """One patch for every pixel."""
    width, height = picture.size
    return Prepared(torch.zeros(3, height, width), (height, width), TokenGrid.stretched(height, width, width, height))


def sample(key: str, size: tuple[int, int] | None = None, **changes: object) -> Sample:
    width, height = size or (0, 0)
    known = {
        "key": key, "question": f"What is {key}?", "answers": ["a", "b"], "boxes": [], "width": width,
        "height": height, "region": Region.full(), "kind": "attribute", "source": "made", "split": "train",
        "image": Image.new("RGB", size) if size else None,
    }  # fmt: skip
    return Sample(**{**known, **changes})  # type: ignore[arg-type]


def test_documents_name_their_pictures() -> None:
    box = {"boxes": [(0.0, 0.0, 4.0, 2.0)], "region": Region(0, 0, 3, 1), "prompt": "What? Be brief."}
    talk = {"followups": [("And?", "c")], "valid": False}
    batch = SampleCollate(prepare)([sample("t"), sample("p", (8, 6)), sample("u", **talk), sample("q", (4, 8), **box)])
    assert batch["images"] == [None, 0, None, 1]
    assert batch["grids"] == [(6, 8), (8, 4)] and [one.shape for one in batch["pixels"]] == [(3, 6, 8), (3, 8, 4)]
    assert [picture().size for picture in batch["pictures"]] == [(8, 6), (4, 8)]
    text, picture, talked, located = (row for (row,) in batch["questions"])
    assert text["turns"] == [("What is t?", "a")] and "evidence" not in text and not text["localize"]
    assert talked["turns"] == [("What is u?", "a"), ("And?", "c")] and not talked["valid"]
    assert (picture["key"], picture["source"], picture["answer"], picture["valid"]) == ("p", "made", "a", True)
    assert picture["evidence"].shape == (2, 48) and not picture["evidence"].any() and not picture["localize"]
    assert located["turns"] == [("What? Be brief.", "a")] and located["question"] == "What is q?"
    assert located["localize"] and located["evidence"].sum() == 2 * 8 and located["region"] == [0, 0, 3, 1]


def test_texts_alone_carry_a_blank_picture() -> None:
    batch = SampleCollate(prepare)([sample("t"), sample("u")])
    assert batch["images"] == [None, None] and len(batch["pixels"]) == len(batch["grids"]) == 1
    (picture,) = pickle.loads(pickle.dumps(batch["pictures"]))
    assert picture().getextrema() == ((0, 0),) * 3


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"answers": []}, "sample 'bad'.*no answer"),
        ({"followups": [(" ", "c")]}, "sample 'bad'.*empty"),
    ],
)
def test_what_cannot_be_trained_on_is_named(changes: dict, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        SampleCollate(prepare)([sample("good"), sample("bad", **changes)])
