"""Every study of the testbed is right, and the one of the tiny Qwen2-VL keeps the shares that it asks for."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cropl import recipe
from cropl.cli import main
from cropl.evaluation.study import Study

STUDIES = [name for name in recipe.names("testbed/") if recipe.kind_of(recipe.load([name])) == "arms"]


@pytest.mark.parametrize("name", STUDIES)
def test_a_study_is_right(name) -> None:
    study = Study.from_config(recipe.load([name]))
    assert study.model.startswith("testbed:") and len(study.arms) > 1 and recipe.describe(name)


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
