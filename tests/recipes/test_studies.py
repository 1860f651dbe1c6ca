"""Every study and suite of the testbed is right, and the tiny Qwen2-VL keeps the shares that are asked for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cropl import recipe
from cropl.cli import main
from cropl.evaluation.study import Study
from cropl.evaluation.suite import Suite

KINDS = {name: recipe.load([name]) for name in recipe.names("testbed/")}
SUITES = [name for name, content in KINDS.items() if "benchmarks" in content]
STUDIES = [name for name, content in KINDS.items() if recipe.kind_of(content) == "arms" and name not in SUITES]


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_is_right(name) -> None:
    study = Study.from_config(recipe.load([name]))
    assert study.model.startswith("testbed:") and len(study.arms) > 1 and recipe.describe(name)


@pytest.mark.parametrize("name", SUITES)
def test_a_suite_is_right(name) -> None:
    suite = Suite.from_config(recipe.load([name]))
    assert suite.paper is None, "figures of the paper are of other models"
    for study in suite.studies:
        named = [study.model, study.localizer, *(arm.model for arm in study.arms if arm.model)]
        assert all(name is not None and name.startswith("testbed:") for name in named)
    assert len({study.model for study in suite.studies}) == 1 and recipe.describe(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SUITES)
def test_a_suite_runs_and_is_reported(name, tmp_path: Path) -> None:
    variables = {**KINDS[name]["vars"], "root": str(tmp_path / "official"), "count": 4}
    variables["budgets"] = variables["budgets"][-1:]
    options = ["--limit", "2", "--seeds", "[0]", "--bootstrap", "10", "--vars", json.dumps(variables)]
    out = tmp_path / "run"
    assert main(["evaluate", "-c", name, *options, "--out", str(out)]) == 0
    results = json.loads((out / "results.json").read_text(encoding="utf-8"))
    assert {row["n"] for row in results["rows"]} == {2} and len(results["suite"]) >= 3
    assert main(["report", str(out), "-o", str(tmp_path / "report")]) == 0
    assert (tmp_path / "report/run.html").exists()


@pytest.mark.slow
def test_shares_of_each_pictures_own_tokens(tmp_path: Path) -> None:
    assert "testbed/study_qwen" in STUDIES
    options = ["--limit", "2", "--seeds", "[0]", "--bootstrap", "10", "--gallery", "0", "--out", str(tmp_path)]
    assert main(["evaluate", "-c", "testbed/study_qwen", "--vars.budgets", "[0.333]", *options]) == 0
    rows = json.loads((tmp_path / "results.json").read_text(encoding="utf-8"))["rows"]
    shown = {(row["method"], row["region_source"]): row for row in rows if row["budget"] is not None}
    sources = {source for method, source in shown if method == "ilp"}
    assert sources == {"gt", "predicted", "center", "random"}
    assert {method for method, _ in shown} == {"ilp", "prune", "fastv", "divprune", "random", "uniform"}
    dense = next(row for row in rows if row["method"] == "dense")
    for row in shown.values():
        assert row["budget"] == 0.333
        assert abs(row["tokens_kept_mean"] - 0.333 * dense["tokens_kept_mean"]) <= 1
        assert row["prefill_flops"] < dense["prefill_flops"] and row["kv_bytes"] < dense["kv_bytes"]
        assert row["layer"] == (0 if row["method"] in ("prune", "divprune") else 1)
