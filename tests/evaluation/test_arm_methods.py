"""Arms whose methods look into the vision tower, or are made of others: rows, and answers as of each question alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cropl.errors import UsageError
from cropl.evaluation.run import run_study
from cropl.evaluation.study import Study
from cropl.models.vlm import load_vlm
from cropl.pruning import FastV, Hybrid, Schedule, VisionZip, VisPruner, pruned
from cropl.pruning.ilp import ILP
from cropl.testbed.samples import samples as scenes
from tests.families import FAMILIES

STAGES = [
    {"class_path": "cropl.pruning.ILP", "init_args": {"layer": 1}},
    {"class_path": "cropl.pruning.FastV", "init_args": {"tokens": 6, "layer": 2}},
]
ARMS: list[dict[str, Any]] = [
    {"method": "visionzip", "budget": [16, 0.5]},
    {"method": "vispruner", "budget": 16, "init_args": {"important": 0.25}},
    {"method": "hybrid", "region_source": "gt", "layer": 1, "init_args": {"tokens": 12}},
    {"method": "schedule", "region_source": "gt", "init_args": {"methods": STAGES}},
]


def study(arms: list[dict[str, Any]]) -> Study:
    config = {"model": "tiny", "benchmark": "testbed", "data": {"class_path": "x.y"}, "arms": arms}
    sizes = {"batch_size": 4, "max_new_tokens": 2, "chunk_images": 2, "bootstrap": 50}
    return Study.from_config({**config, **sizes})


@pytest.fixture(scope="module")
def world(tiny_llava):
    vlm, samples = load_vlm(tiny_llava), scenes("test", 6)
    return vlm, samples, run_study(study(ARMS), samples, vlm)


def test_rows_say_what_stayed(world) -> None:
    vlm, _, outcome = world
    rows = [row for row in outcome.results["rows"] if row["method"] != "dense"]
    assert [row["method"] for row in rows] == ["visionzip", "visionzip", "vispruner", "hybrid", "schedule"]
    total = outcome.results["rows"][0]["tokens_kept_mean"]
    assert [row["tokens_kept_mean"] for row in rows[:3]] == [16, total / 2, 16]
    assert [row["layer_average_tokens"] for row in rows[:3]] == [16, total / 2, 16]
    assert rows[3]["tokens_kept_max"] <= 12 and rows[4]["tokens_kept_max"] <= 6
    assert rows[4]["layer_average_tokens"] > total / vlm.num_layers
    assert all(row["accuracy"] is not None for row in rows)


@torch.no_grad()
def test_answers_are_those_of_each_question_alone(world) -> None:
    vlm, samples, outcome = world
    methods = [
        VisionZip(16), VisionZip(0.5), VisPruner(16, 0.25), Hybrid(12, 1), Schedule([ILP(1), FastV(6, 2)]),
    ]  # fmt: skip
    keys = [row["arm"] for row in outcome.results["rows"] if row["method"] != "dense"]
    for key, method in zip(keys, methods, strict=True):
        for line, sample in zip(outcome.predictions, samples, strict=True):
            inputs = vlm.inputs([sample.picture()], [sample.asked])
            wish = {"regions": [sample.region], "grids": inputs.grids} if key.startswith(("hybrid", "schedule")) else {}
            with pruned(vlm, method, **wish) as patch:
                alone = vlm.generate(inputs, max_new_tokens=2)
            assert line["arms"][key]["prediction"] == alone[0]
            assert line["arms"][key]["tokens_kept"] == patch.kept_B.tolist()[0]


@pytest.mark.parametrize(
    ("arm", "says"),
    [
        ({"method": "hybrid", "layer": 1, "init_args": {"tokens": 4}}, "needs regions"),
        ({"method": "schedule", "init_args": {"methods": []}}, "give at least one"),
        (
            {"method": "schedule", "init_args": {"methods": [{"class_path": "cropl.pruning.None"}]}},
            "cannot be imported",
        ),
        (
            {"method": "schedule", "init_args": {"methods": [{**STAGES[0], "init_args": {"layers": 1}}]}},
            "methods: cropl.pruning.ILP.*'layers'",
        ),
        ({"method": "visionzip", "layer": 2, "budget": 16}, "layer"),
        ({"method": "visionzip", "budget": 999}, "above"),
        (
            {"method": "hybrid", "region_source": "gt", "layer": 1, "budget": 4, "init_args": {"outside": [0.1]}},
            "Hybrid with .*0.1",
        ),
        ({"method": "visionzip", "init_args": {"tokens": 999}}, "more than the 144 visual tokens"),
    ],
)
def test_arms_that_cannot_be(world, arm, says) -> None:
    vlm, samples, _ = world
    with pytest.raises(UsageError, match=says):
        run_study(study([arm]), samples, vlm)


@pytest.mark.parametrize(
    ("family", "arm", "says"),
    [
        ("internvl", {"method": "visionzip", "budget": 4}, "VisionZip is not supported"),
        ("llava_next", {"method": "vispruner", "init_args": {"tokens": 2}}, "fewer than the . crops"),
    ],
)
def test_towers_are_asked_before_anything_is_answered(family, arm, says, monkeypatch) -> None:
    vlm = FAMILIES[family]()
    monkeypatch.setattr(vlm, "generate", None)
    with pytest.raises(UsageError, match=says):
        run_study(study([arm]), scenes("test", 2), vlm)
