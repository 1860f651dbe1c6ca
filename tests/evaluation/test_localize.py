"""Regions are scored against true ones alone, and what was no region is told as that."""

from __future__ import annotations

import dataclasses
import logging

import pytest

from cropl.errors import UsageError
from cropl.evaluation.localize import recall
from cropl.evaluation.locating import Flagged
from cropl.evaluation.progress import Stages
from cropl.evaluation.run import run_study
from cropl.evaluation.study import Study
from cropl.grid import Region
from cropl.models.localizer import Localizer
from cropl.models.vlm import load_vlm
from cropl.prompt import RegionCodec
from cropl.testbed.samples import samples as scenes

SMALL = Region(1, 1, 2, 2)


@pytest.fixture(scope="module")
def world(tiny_llava, tiny_localizer):
    return load_vlm(tiny_llava), Localizer.from_pretrained(tiny_localizer), scenes("test", 4)


def unboxed(samples, which):
    bare = {"boxes": [], "region": Region.full()}
    return [dataclasses.replace(s, **bare) if i in which else s for i, s in enumerate(samples)]


def answered(world, samples, source="predicted", localizer=None, **changes):
    arms = [{"method": "ilp", "region_source": source, "layer": 1, "budget": 16}]
    config = {"model": "m", "localizer": "l", "data": {"class_path": "a.b"}, "arms": arms, "max_new_tokens": 1}
    study = Study.from_config({**config, **changes})
    return run_study(study, samples, world[0], localizer or world[1], stages=Stages())


def test_only_true_regions_are_scored(world):
    samples = unboxed(world[2], {0, 2})
    outcome = answered(world, samples)
    some, details = outcome.results["localizer"], outcome.results["localizer_details"]
    predicted = [Region(*line["predicted_region"]) for line in outcome.predictions]
    assert some["n"] == 2 and sum(one["n"] for one in details["by_kind"].values()) == 2
    assert some["mean_recall"] == pytest.approx(sum(predicted[i].recall_against(samples[i].region) for i in (1, 3)) / 2)
    assert details["region_share"] == pytest.approx(sum(region.area for region in predicted) / (64 * 4))
    assert [line["region"] is None for line in outcome.predictions] == [True, False, True, False]


def test_without_true_regions_there_is_no_score(world):
    results = answered(world, unboxed(world[2], range(4))).results
    assert results["localizer"] is None and results["rows"][1]["without_boxes"] is None
    details = results["localizer_details"]
    assert details["mean_iou"] is None and details["by_kind"] == {} and 0 < details["region_share"] <= 1


@pytest.mark.parametrize(
    "changes", [{"source": "gt"}, {"controls": ["evidence_only"]}, {"controls": ["evidence_masked"]}]
)
def test_what_needs_evidence_says_so_where_there_is_none(world, changes, caplog):
    with pytest.raises(UsageError, match="needs evidence boxes, and none of the 4 samples has any"):
        answered(world, unboxed(world[2], range(4)), **changes)
    with caplog.at_level(logging.WARNING):
        rows = answered(world, unboxed(world[2], {3}), **changes).results["rows"]
    told = [row["without_boxes"] for row in rows if row["region_source"] == "gt" or row["control"]]
    assert told == [1] and rows[0]["without_boxes"] is None
    assert "1 of 4 samples have no evidence boxes" in caplog.text
    caplog.clear()
    assert answered(world, world[2], **changes).results["rows"][1]["without_boxes"] in (0, None)
    assert not caplog.text


def test_answers_that_were_no_region_have_their_share(world, tiny_localizer):
    """An untrained model writes no digits at all."""
    localizer = Localizer.from_pretrained(tiny_localizer, codec=RegionCodec("digits"), readout="greedy")
    localizer.fallbacks = 5  # of earlier runs
    details = answered(world, world[2], localizer=localizer).results["localizer_details"]
    assert details["fallbacks"] == 4 and details["region_share"] == 1
    assert all(one["malformed_share"] == 1 for one in details["by_kind"].values())


class Stub:
    """Answers from a list by question; None is no region."""

    def __init__(self, told):
        self.told, self.fallbacks, self.asked = told, 0, []

    def locate(self, images, questions):
        self.asked.append(list(questions))
        found = [self.told[question] for question in questions]
        self.fallbacks += found.count(None)
        return [region or Region.full() for region in found]


@pytest.mark.parametrize(("full", "batches"), [(False, 2), (True, 4)])
def test_a_full_region_that_was_answered_is_none_of_them(full, batches):
    samples = [dataclasses.replace(s, question=s.key) for s in scenes("test", 4)]
    a, b, c, d = (s.key for s in samples)
    stub = Stub({a: SMALL, b: None, c: Region.full() if full else SMALL, d: SMALL})
    source = Flagged(stub, batch_size=2)
    found = source([None] * 4, [s.question for s in samples], samples)
    assert found[1] == Region.full() and source.malformed == {b}
    assert stub.fallbacks == 1 and len(stub.asked) == batches
    scores = recall(found, samples, [s.key in source.malformed for s in samples])
    assert scores["malformed_share"] == 0.25


def test_a_kind_alone(world):
    samples = world[2]
    found = recall([s.region for s in samples], samples, [False] * 4, samples[0].kind)
    assert found["n"] == sum(s.kind == samples[0].kind for s in samples) and found["mean_recall"] == 1
    assert recall([s.region for s in samples], samples, [False] * 4, "no such kind") is None
