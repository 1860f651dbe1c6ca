"""A whole study on untrained models and rendered scenes: rows, identities, batch size, files."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch

from cropl.budget import InfeasibleBudget
from cropl.errors import UsageError
from cropl.evaluation import answer, arm_run, gallery, tables
from cropl.evaluation import plan as planning
from cropl.evaluation import rows as result_rows
from cropl.evaluation import run as running
from cropl.evaluation.arm_run import Run
from cropl.evaluation.plan import check_arms
from cropl.evaluation.progress import Stages
from cropl.evaluation.run import run_study, save
from cropl.evaluation.study import Study
from cropl.grid import TokenGrid
from cropl.models.localizer import Localizer
from cropl.models.vlm import load_vlm
from cropl.testbed.samples import samples as scenes

FIELDS = {
    "method", "region_source", "layer", "budget", "budget_meaning", "tokens_kept_mean", "layer_average_tokens",
    "prefill_flops", "kv_bytes", "accuracy", "accuracy_ci95", "rel_acc", "n",
}  # fmt: skip

ARMS = [
    {"method": "ilp", "region_source": ["gt", "predicted", "center", "random"], "layer": 1, "budget": 16},
    {"method": "prune", "region_source": "predicted", "budget": 16},
    {"method": "random", "layer": 1, "budget": [16, 0.5]},
    {"method": "ilp", "region_source": ["predicted", "random"], "layer": "all", "budget": 16},
    {"method": "ilp", "region_source": "gt", "layer": 2, "budget": 32, "budget_meaning": "layer_average"},
]


def study(**changes):
    config = {
        "model": "tiny", "localizer": "loc", "benchmark": "testbed", "data": {"class_path": "x.y"}, "arms": ARMS,
        "controls": ["blank_image", "evidence_masked", "evidence_only"], "seeds": [0, 1], "batch_size": 4,
        "max_new_tokens": 2, "chunk_images": 2, "bootstrap": 50,
    }  # fmt: skip
    return Study.from_config({**config, **changes})


@pytest.fixture(scope="module")
def world(tiny_llava, tiny_localizer):
    return load_vlm(tiny_llava), Localizer.from_pretrained(tiny_localizer), scenes("test", 6)


@pytest.fixture(scope="module")
def outcome(world):
    vlm, localizer, samples = world
    return run_study(study(), samples, vlm, localizer, recipe="testbed/study", stages=Stages())


@pytest.fixture(scope="module")
def rows(outcome):
    return {row["arm"]: row for row in outcome.results["rows"]}


def test_rows_have_the_fields(outcome, rows):
    assert outcome.results["rows"][0]["method"] == "dense"
    for row in rows.values():
        assert set(row) >= FIELDS
        assert row["n"] == 6 and row["recipe"] == "testbed/study" and row["versions"]["torch"] == torch.__version__
    assert set(outcome.results["localizer"]) == {"mean_recall", "recall_gt_0.5", "recall_gt_0.7", "recall_gt_0.9", "n"}
    assert outcome.results["localizer"]["n"] == 6
    assert [row["control"] for row in rows.values() if row["control"]] == [
        "blank_image",
        "evidence_masked",
        "evidence_only",
    ]


def test_budgets_are_met(rows):
    for key, row in rows.items():
        if key.startswith("ilp") and row["budget"] == 16 and row["layer"] < 3:
            assert abs(row["tokens_kept_mean"] - 16) <= 1
    assert rows["random-k1-16"]["tokens_kept_min"] == rows["random-k1-16"]["tokens_kept_max"] == 16
    assert rows["random-k1-0.5"]["tokens_kept_mean"] == 72
    assert rows["ilp-predicted-k1-16"]["layer_average_tokens"] == pytest.approx(
        (144 + 2 * rows["ilp-predicted-k1-16"]["tokens_kept_mean"]) / 3
    )


def test_layer_average_that_cannot_be_is_infeasible(rows):
    row = rows["ilp-gt-k2-32-layer_average"]  # two of three layers cost 96 on their own
    assert row["accuracy"] is None and "96" in row["infeasible"]
    assert "infeasible" in tables.results_html([row])
    assert row["positions"] == "original"  # what it would have had, so that it has the name of the others


def test_every_layer_full_is_dense(outcome, rows):
    for line in outcome.predictions:
        dense = line["arms"]["dense"]["prediction"]
        for arm in ("ilp-predicted-kall-16", "ilp-random-kall-16#0", "ilp-random-kall-16#1"):
            assert line["arms"][arm]["prediction"] == dense
    for arm in ("ilp-predicted-kall-16", "ilp-random-kall-16"):
        assert rows[arm]["accuracy"] == rows["dense"]["accuracy"]
        assert rows[arm]["prefill_flops"] == rows["dense"]["prefill_flops"]
        assert rows[arm]["kv_bytes"] == rows["dense"]["kv_bytes"]
        assert rows[arm]["layer_average_tokens"] == 144
        # What was kept, and not what the budget asked for.
        assert [rows[arm][f"tokens_kept_{part}"] for part in ("mean", "min", "max")] == [144, 144, 144]
        assert rows[arm]["budget"] == 16
    full = [line["arms"]["ilp-predicted-kall-16"] for line in outcome.predictions]
    assert all(one["tokens_kept"] == 144 and one["kept"] is None for one in full)
    cut = [line["arms"]["ilp-predicted-k1-16"] for line in outcome.predictions]
    assert all(sum(gallery.unpack(one["kept"], 144)) == one["tokens_kept"] < 144 for one in cut)


def test_costs_order(rows):
    ilp, prune, dense = rows["ilp-predicted-k1-16"], rows["prune-predicted-k0-16"], rows["dense"]
    assert prune["prefill_flops"] < ilp["prefill_flops"] < dense["prefill_flops"]
    assert prune["kv_bytes"] < ilp["kv_bytes"] < dense["kv_bytes"]
    assert dense["prefill_flops"] < dense["prefill_flops_with_vision"] == dense["prefill_flops_with_localizer"]
    assert ilp["prefill_flops_with_localizer"] > ilp["prefill_flops_with_vision"] > ilp["prefill_flops"]
    assert (prune["layer"], prune["positions"], ilp["positions"]) == (0, "compact", "original")


def test_result_does_not_depend_on_batches_or_order(world, outcome):
    vlm, localizer, samples = world
    other = run_study(study(batch_size=3, chunk_images=1), samples[::-1], vlm, localizer, stages=Stages())
    mine = {line["key"]: line["arms"] for line in outcome.predictions}
    for line in other.predictions:
        assert {arm: v["kept"] for arm, v in line["arms"].items()} == {
            arm: v["kept"] for arm, v in mine[line["key"]].items()
        }
        assert {arm: v["prediction"] for arm, v in line["arms"].items()} == {
            arm: v["prediction"] for arm, v in mine[line["key"]].items()
        }


def test_center_and_random_have_the_predicted_size(outcome):
    def size(region):
        return region[2] - region[0], region[3] - region[1]

    for line in outcome.predictions:
        predicted = size(line["predicted_region"])
        for arm in ("ilp-predicted-k1-16", "ilp-center-k1-16", "ilp-random-k1-16#0", "ilp-random-k1-16#1"):
            assert size(line["arms"][arm]["region"]) == predicted


def test_comparisons(outcome):
    pairs = {(c["arm_a"], c["arm_b"]) for c in outcome.results["comparisons"]}
    rivals = ("ilp-gt-k1-16", "ilp-center-k1-16", "ilp-random-k1-16", "random-k1-16", "prune-predicted-k0-16")
    assert pairs == {("ilp-predicted-k1-16", rival) for rival in rivals}


def test_files(world, outcome, tmp_path):
    _, _, samples = world
    path = save(outcome, samples, tmp_path / "out", gallery_size=1)
    assert json.loads((tmp_path / "out/results.json").read_text())["rows"][0]["arm"] == "dense"
    lines = [json.loads(line) for line in (tmp_path / "out/predictions.jsonl").read_text().splitlines()]
    assert [line["key"] for line in lines] == [sample.key for sample in samples]
    page = path.read_text()
    assert (
        page.count("data:image/jpeg;base64,") >= 1
        and "<svg" in page
        and "http://" not in page.replace("http://www.w3.org/2000/svg", "")
    )
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["predictions.jsonl", "report.html", "results.json"]


def test_a_family_whose_grid_follows_the_image(tiny_localizer, world):
    one = study(arms=[{"method": "dense"}], controls=[], localizer=None)
    result = run_study(one, world[2], load_vlm(tiny_localizer), stages=Stages()).results
    row = result["rows"][0]
    assert 16 < row["tokens_kept_mean"] < 80 and row["layer_average_tokens"] == row["tokens_kept_mean"]
    assert result["localizer"] is None and row["prefill_flops_with_vision"] > row["prefill_flops"] > 0


def test_errors(world):
    vlm, localizer, samples = world
    with pytest.raises(UsageError, match="no samples"):
        run_study(study(), [], vlm, localizer, stages=Stages())
    with pytest.raises(UsageError, match="occurs twice"):
        run_study(study(), [samples[0], samples[0]], vlm, localizer, stages=Stages())
    with pytest.raises(UsageError, match="layer 4 is above 3"):
        one = study(arms=[{"method": "ilp", "region_source": "gt", "layer": 4, "budget": 16}])
        run_study(one, samples, vlm, localizer, stages=Stages())
    with pytest.raises(UsageError, match="budget 145"):
        one = study(arms=[{"method": "ilp", "region_source": "gt", "layer": 1, "budget": 145}])
        run_study(one, samples, vlm, localizer, stages=Stages())
    with pytest.raises(UsageError, match="above 144"):
        one = study(arms=[{"method": "random", "layer": 1, "budget": 145}])
        run_study(one, samples, vlm, localizer, stages=Stages())


@pytest.mark.parametrize(
    ("arm", "says"),
    [
        ({"method": "ilp", "region_source": "gt", "init_args": {"depth": 1}}, "depth"),
        ({"method": "ilp", "region_source": "gt", "layer": 4}, "layer 4 is above 3"),
        ({"method": "cropl.pruning.random.RandomTokens", "layer": 1}, "argument: 'tokens'"),
        ({"method": "cropl.pruning.random.RandomTokens", "init_args": {"tokens": 0}}, "tokens=0"),
        ({"method": "cropl.pruning.ilp.ILP", "layer": 1}, "needs regions"),
        ({"method": "cropl.pruning.ilp.ILP", "layer": 1, "budget": 8}, "for_budget"),
        ({"method": "fastv", "region_source": "gt", "layer": 1, "budget": 8}, "fastv ignores regions"),
        ({"method": "string.Formatter"}, "must be an InnerLLM"),
    ],
)
def test_what_cannot_run_fails_before_anything_is_localized(world, monkeypatch, arm, says):
    monkeypatch.setattr(running, "localize", lambda *args: pytest.fail("localized"))
    with pytest.raises(UsageError, match=says):
        run_study(study(arms=[arm]), world[2], world[0], world[1], stages=Stages())


def test_a_model_that_cannot_be_pruned_fails_at_once(world, monkeypatch):
    monkeypatch.setattr(type(world[0]), "prunable", False)
    monkeypatch.setattr(running, "localize", lambda *args: pytest.fail("localized"))
    with pytest.raises(UsageError, match="cannot be pruned"):
        run_study(study(), world[2], world[0], world[1], stages=Stages())


def test_layer_average_of_a_method_with_one_number_needs_one_grid(world):
    arms = study(arms=[{"method": "random", "layer": 1, "budget": 64, "budget_meaning": "layer_average"}]).arms
    grids = [TokenGrid.stretched(12, 12, 96, 96), TokenGrid.stretched(10, 12, 96, 80)]
    check_arms(arms, {None: world[0]}, grids[:1])
    with pytest.raises(UsageError, match="one token count"):
        check_arms(arms, {None: world[0]}, grids)


@pytest.mark.parametrize("meaning", ["post_prune", "layer_average"])
def test_a_hybrid_keeps_its_budget_itself(world, meaning):
    vlm, localizer, samples = world
    arm = {"method": "hybrid", "region_source": "gt", "layer": 1, "budget": 64, "budget_meaning": meaning}
    rows = run_study(study(arms=[arm]), samples, vlm, localizer, stages=Stages()).results["rows"]
    row = rows[-1]
    met = row["tokens_kept_mean"] if meaning == "post_prune" else row["layer_average_tokens"]
    assert abs(met - 64) < 1 and row["tokens_kept_min"] == row["tokens_kept_max"] and "budget_scope" not in row


def test_seconds_are_of_generation_alone_after_a_warm_up(world, monkeypatch):
    vlm, _, samples = world
    told = []
    for name in ("inputs", "generate"):
        method = getattr(vlm, name)

        def noted(*args, name=name, method=method, **options):
            told.append((name, options.get("max_new_tokens")))
            return method(*args, **options)

        monkeypatch.setattr(vlm, name, noted)
    monkeypatch.setattr(answer, "_probe", lambda *args: 0)
    clock = answer.time.perf_counter
    monkeypatch.setattr(answer.time, "perf_counter", lambda: told.append(("clock", None)) or clock())
    dense = Run(study().arms[0], None, None, kept=[144])
    with torch.inference_mode():
        list(answer.answer_all(vlm, samples[:1], [dense], [[0]], {"dense": {0}}, max_new_tokens=2))
    clocks = ("clock", None)
    assert told[:2] == [("inputs", None), ("generate", 1)]
    assert told[2:] == [clocks, clocks, ("inputs", None), clocks, ("generate", 2), clocks]


def test_an_unknown_vision_tower_has_no_cost_and_loses_no_answer(world, monkeypatch):
    vlm, localizer, samples = world
    monkeypatch.setattr(vlm.model.config.vision_config, "model_type", "siglip_vision_model")
    arms = [{"method": "ilp", "region_source": "gt", "layer": 1, "budget": 16}]
    made = run_study(study(arms=arms, controls=[]), samples[:2], vlm, localizer, stages=Stages()).results["rows"]
    for row in made:
        assert row["prefill_flops"] > 0 and row["kv_bytes"] > 0
        assert row["prefill_flops_with_vision"] is row["prefill_flops_with_localizer"] is None


def test_costs_that_cannot_be_counted_are_told_before_the_answers(world, monkeypatch):
    vlm, localizer, samples = world
    monkeypatch.setattr(running, "localize", lambda *args: pytest.fail("localized"))

    def unknown(*args):
        raise AttributeError("no intermediate_size")

    monkeypatch.setattr("cropl.metrics.cost.decoder_flops", unknown)
    with pytest.raises(UsageError, match="cannot be counted"):
        run_study(study(), samples, vlm, localizer, stages=Stages())


def test_only_what_was_counted_is_free(world, tmp_path):
    vlm, localizer, samples = world
    lines = [{"key": sample.key, "region": [0, 0, 3, 3]} for sample in samples]
    (tmp_path / "regions.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    arms = [{"method": "ilp", "region_source": ["gt", "file", "center"], "layer": 1, "budget": 16}]
    one = study(arms=arms, controls=[], localizer=None, regions=str(tmp_path / "regions.jsonl"))
    dense, gt, file, center = run_study(one, samples[:2], vlm, stages=Stages()).results["rows"]
    for row in (dense, gt):
        assert row["prefill_flops_with_localizer"] == row["prefill_flops_with_vision"] > 0
    assert file["prefill_flops_with_localizer"] is None and center["prefill_flops_with_localizer"] is None


def test_comparisons_are_between_equal_positions():
    base = {"budget": 16, "budget_meaning": "post_prune", "num_layers": 3, "control": None}
    made = [
        {**base, "arm": f"{method}-{source}-{positions}", "method": method, "region_source": source, "layer": layer,
         "positions": positions}
        for method, source, layer, positions in (
            ("ilp", "predicted", 1, "original"), ("ilp", "predicted", 1, "compact"), ("ilp", "gt", 1, "compact"),
            ("prune", "predicted", 0, "compact"),
        )
    ]  # fmt: skip
    found = result_rows.compare(study(), made, {row["arm"]: np.ones(4) for row in made})
    assert [(one["arm_a"], one["arm_b"]) for one in found] == [
        ("ilp-predicted-original", "prune-predicted-compact"),
        ("ilp-predicted-compact", "ilp-gt-compact"),
        ("ilp-predicted-compact", "prune-predicted-compact"),
    ]
    assert found[1]["a"] == "ILP, predicted regions, compact positions"


def test_an_arm_is_feasible_with_all_its_seeds_or_with_none(world, monkeypatch):
    vlm, localizer, samples = world
    calibrate, asked = planning.calibrate, []

    def sometimes(*args):
        asked.append(args)
        if len(asked) == 2:
            raise InfeasibleBudget("not for the second seed")
        return calibrate(*args)

    monkeypatch.setattr(planning, "calibrate", sometimes)
    arms = [{"method": "ilp", "region_source": ["random", "predicted"], "layer": 1, "budget": 16}]
    one = study(arms=arms, controls=[], seeds=[0, 1, 2])
    results = run_study(one, samples[:2], vlm, localizer, stages=Stages()).results
    dense, random, predicted = results["rows"]
    assert random["infeasible"] == "not for the second seed" and random["accuracy"] is None
    assert dense["infeasible"] is predicted["infeasible"] is None and predicted["accuracy"] is not None
    assert results["comparisons"] == []


def test_a_run_reads_the_arguments_of_its_class_once(monkeypatch):
    asked, signature = [], arm_run.inspect.signature
    monkeypatch.setattr(arm_run.inspect, "signature", lambda cls: asked.append(cls) or signature(cls))
    arms = [{"method": "hybrid", "region_source": "gt", "layer": 1, "budget": 9}]
    run = Run(study(arms=arms, controls=[]).arms[1], None, 1, 3)
    run.count([144, 100])
    assert all(run.meets_budget for _ in range(5)) and run.kept == [9, 9] and run.total == 122
    assert run.method(["a"]).tokens == 9 and len(asked) == 1
