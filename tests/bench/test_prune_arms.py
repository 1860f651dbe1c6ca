"""The arms of the pruning bench: budgets that mean what rows say, every method on every family, and compiled ones."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cropl.bench.prune import shapes as published
from cropl.bench.prune.inputs import REGIONS, arm
from cropl.bench.prune.methods import METHODS
from cropl.bench.prune.plan import Plan
from cropl.bench.prune.run import measure
from cropl.bench.prune.shapes import shape_of
from cropl.errors import UsageError
from cropl.pruning.select import scaled_layer
from tests.bench.test_prune import CPU, INNER, LAYERS, LLAVA, PUBLISHED, TEXT, VOCAB, WIDTH
from tests.bench.test_prune import _published as _published
from tests.bench.test_prune import shapes as shapes

SLOW = (pytest.mark.slow, pytest.mark.timeout(900))


def test_methods_meet_their_budgets_at_any_depth() -> None:
    assert [scaled_layer(layer, 16) for layer in (2, 8, 15)] == [1, 4, 8] and scaled_layer(2, 40) == 2
    assert scaled_layer(2, 1) == 1  # all layers of a model that has one
    shape = shape_of("scaled")
    for layers in (16, 32):
        for budget in (192, 128, 64):
            method: Any = arm("pyramiddrop", budget, shape, layers, 1).method
            stages = [576.0]
            for _ in method.layers:
                stages.append(stages[-1] * method.ratio)
            ends = (0, *method.layers, layers)
            average = sum(count * (end - start) for count, start, end in zip(stages, ends, ends[1:])) / layers
            assert average == pytest.approx(budget, abs=0.01)
    method = arm("sparsevlm", 192, shape, 32, 1).method
    assert (method.kept, method.rating, method.name) == ((300, 200, 110), (2, 6, 15), "sparsevlm")
    plus: Any = arm("sparsevlm+", 64, shape, 32, 1).method
    assert plus.name == "sparsevlm+"
    assert kept("ilp", 64, 3) == [64] * 3 and kept("ilp", 0.25, 1) == [144]
    assert len(set(kept("ilp", REGIONS, 8))) > 3
    assert kept("hybrid", 64, 2) == kept("schedule", 64, 2) == [128] * 2  # regions that hold more than is to stay


def kept(name: str, budget: Any, batch: int) -> list[int]:
    """Tokens of the regions that an arm of the scaled shape is given."""
    return [int(mask.sum()) for mask in arm(name, budget, shape_of("scaled"), 16, batch).request["keep"]]


def test_a_budget_that_cannot_be_met_is_told_and_never_another(shapes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one = arm("pyramiddrop", 1, shape_of("small"), LAYERS, 1)  # a full layer of eight takes more: 16 / 8
    assert one.method is None and one.infeasible == "infeasible: least 3"
    rows = measure("small", Plan(["pyramiddrop"], [1, 3], [1], [], 1, 0), CPU, torch.float32, 1)
    assert [row.get("failed") for row in rows] == ["infeasible: least 3", None]
    assert rows[1]["layer_average"] == pytest.approx(3, abs=0.5)  # whole tokens at every stage
    monkeypatch.setattr(published, "FOLDER", PUBLISHED)
    least = arm("pyramiddrop", 160, shape_of("llava_next_7b"), 32, 1)
    assert (least.method, least.infeasible) == (None, "infeasible: least 181")  # two full layers average 180
    assert arm("visionzip", 4, shape_of("llava_next_7b"), 32, 1).infeasible == "infeasible: least 5"


def test_rows_tell_what_their_budget_counts() -> None:
    shape = shape_of("scaled")
    found = {name: arm(name, 64, shape, 16, 1) for name in METHODS}
    meanings = {name: one.meaning for name, one in found.items()}
    others = {"pyramiddrop": "layer_average", "sparsevlm": "published_counts", "sparsevlm+": "published_counts"}
    others |= {"plc": "own", "dense": "own"}
    assert meanings == {name: others.get(name, "post_prune") for name in METHODS}
    assert (found["plc"].budget, found["dense"].budget) == (68, 576)
    plan = Plan(["plc", "dense", "ilp"], None, [1], [], 1, 0)
    assert plan.steps(shape) == 1 + 1 + 3


def test_pictures_of_several_crops_are_seen_whole(shapes: Path) -> None:
    """As LLaVA-NeXT's: what looks into the tower gets all crops of a picture, and PLC one grid."""
    many = {**LLAVA, "grid": [8, 10], "crops": 5}
    (shapes / "many.json").write_text(json.dumps(many))
    plan = Plan(["visionzip", "vispruner", "plc"], [11], [2], [2], pairs=1, answer_pairs=1)
    rows = measure("many", plan, CPU, torch.float32, 1)
    assert [(row["method"], row["kept"], row.get("failed")) for row in rows] == [
        ("visionzip", [11, 11], None), ("vispruner", [11, 11], None), ("plc", [68, 68], None),
    ]  # fmt: skip
    assert [row["localizer"] is not None for row in rows] == [False, False, True]
    length, layer = TEXT + 11, 2 * (4 * WIDTH**2 + 3 * WIDTH * INNER)
    assert rows[0]["linear_flops"]["pruned"] == 2 * (LAYERS * layer * length + 2 * WIDTH * VOCAB)
    # Watched towers take their own time, which is no part of a prefill; FLOPs of the tower are not the decoder's.
    assert rows[0]["prefill"]["tower_extra_s"] != 0 == rows[2]["prefill"]["tower_extra_s"]
    assert rows[0]["counted_linear_flops"]["pruned"] < 1.5 * rows[0]["linear_flops"]["pruned"]
    assert arm("plc", 8, shape_of("small"), LAYERS, 1).infeasible == "infeasible: of 16 tokens"


def test_a_method_that_the_family_does_not_support_says_so_in_its_row(
    shapes: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def blind(self: Any, record: Any) -> Any:
        raise NotImplementedError("its tower shows nothing")

    monkeypatch.setattr("cropl.models.llava.LlavaVLM.watch_tower", blind)
    rows = measure("small", Plan(["visionzip", "fastv"], [8], [1], [], 1, 0), CPU, torch.float32, 1)
    assert [row.get("failed") for row in rows] == ["not supported", None]
    assert "VisionZip is not supported here: its tower shows nothing" in rows[0]["why"]


def test_every_method_has_a_row_on_qwen2_vl(shapes: Path) -> None:
    rows = measure("finder", Plan(list(METHODS), [2], [2], [], 1, 0), CPU, torch.float32, 1)
    failed = {row["method"]: row["failed"] for row in rows if "failed" in row}
    stages = "stages do not fit into 2 decoder layers"  # too few for these
    assert failed == {
        **dict.fromkeys(("pyramiddrop", "sparsevlm", "sparsevlm+"), f"infeasible: 3 {stages}"),
        "schedule": f"infeasible: 2 {stages}",
        "plc": "infeasible: of 4 tokens",
    }
    kept = {row["method"]: row["kept"] for row in rows if "failed" not in row}
    assert kept == {name: [4, 4] if name == "dense" else [2, 2] for name in METHODS if name not in failed}


@pytest.mark.parametrize(
    "compile", [False, pytest.param({"backend": "eager"}, marks=pytest.mark.slow), pytest.param(True, marks=SLOW)]
)
def test_compiled_arms_are_measured_against_dense_compiled_and_eager(compile: Any, shapes: Path) -> None:
    plan = Plan(["random"], [8], [2], [1, 3], pairs=2, answer_pairs=1, compiled=["ilp", "fastv", "dense"])
    rows = measure("small", plan, CPU, torch.float32, 1, compile=compile)
    assert plan.steps(shape_of("small")) == len(rows) == 4
    plain, ilp, fastv, dense = rows
    assert [row["compiled"] for row in rows] == [False, True, True, True] and plain["series"] == "methods"
    assert fastv["failed"] == "not supported" and "StaticRunner" in fastv["why"]
    assert ilp["kept"] == [8, 8] and ilp["flops"] == plain["flops"]  # the same layers, the same lengths
    assert ilp["buckets"] == [32] == dense["buckets"] and ilp["first_s"] > 0
    assert ilp["prefill"]["ideal_of_buckets"] == 1 < ilp["prefill"]["speedup"]["llm"]["ideal"]
    assert dense["prefill"]["speedup"]["llm"]["ideal"] == 1 and dense["localizer"] is None is not ilp["localizer"]
    # Buffers of the bucket and three new tokens in each layer, keys and values.
    assert ilp["kv_bytes"]["dense"] == 2 * LAYERS * 2 * (32 + 3) * WIDTH * 4
    for row in (ilp, dense):
        assert len(row["prefill"]["pairs"]) == 2 and row["prefill"]["eager"]["dense"]["seconds"] > 0
        assert set(row["answers"]) == {"1", "3", "step"}
        for length in ("1", "3"):
            low, high = row["answers"][length]["eager"]["interval"]
            assert 0 < low <= row["answers"][length]["eager"]["measured"] <= high
    assert row["answers"]["1"]["seconds"] < row["answers"]["3"]["seconds"]


def test_a_budget_or_method_that_cannot_be_is_refused(shapes: Path) -> None:
    small = shape_of("small")
    for budget, text in (
        (17, "has 16 visual tokens"),
        (0, "a count from 1 to 16"),
        (1.5, "a share in"),
        (True, "True"),
    ):
        with pytest.raises(UsageError, match=text):
            arm("ilp", budget, small, LAYERS, 1)
    with pytest.raises(UsageError, match="did you mean 'fastv'"):
        arm("fastvv", 8, small, LAYERS, 1)
    for name in ("fastv", "hybrid", "dense"):
        with pytest.raises(UsageError, match=f"{name} keeps a number of tokens"):
            arm(name, REGIONS, small, LAYERS, 1)
    with pytest.raises(UsageError, match="did you mean 'small'"):
        shape_of("smal")
