"""Broken results of suites: each fault is named, and none ends in a traceback."""

from __future__ import annotations

import copy
import json
from pathlib import Path

import pytest

from cropl.errors import UsageError
from cropl.evaluation.reporting import page
from cropl.evaluation.reporting.suite_check import check_suite
from tests.evaluation.suites import arm, suite

HUGE = 10**400
"""An integer that is no float."""

ARMS = [arm("dense"), arm("ilp", 64), arm("fastv", 128, infeasible="no"), arm("random", 64, seeds=[0, 1])]


def changed(*path, value=...):
    results = json.loads(json.dumps(suite(ARMS, ("gqa",))))
    inner = results
    for key in path[:-1]:
        inner = inner[key]
    if value is ...:
        del inner[path[-1]]
    else:
        inner[path[-1]] = value
    return results


@pytest.mark.parametrize(
    ("results", "said"),
    [
        (changed("tables", value=[[]]), "tables must be a list of the paper's tables"),
        (changed("tables", value=[{}]), "tables must be a list of the paper's tables"),
        (changed("tables", value=[None]), "tables must be a list of the paper's tables"),
        (changed("suite", 1, "rel_acc"), r"arm 2 \(.*\) has no rel_acc"),
        (changed("suite", 1, "rel_acc", value="x"), "rel_acc 'x' must be a number, or null"),
        (changed("suite", 1, "rel_acc_over", value="gqa"), "rel_acc_over 'gqa' must be a list of names"),
        (changed("suite", 1, "rel_acc_over", value=[["gqa"]]), "must be a list of names"),
        (changed("suite", 1, "layer", value=None), "layer is null, and ILP has one"),
        (changed("suite", 1, "tokens_kept", value=5), "tokens_kept '5' must be a mapping of benchmarks"),
        (changed("suite", 2, "scores", value="x"), "arm 3: scores 'x' must be a mapping"),
        (
            changed("localizer", "gqa", "recall_gt_0.5", value=1e308),
            "recall_gt_0.5 '1e.308' must be a number from 0 to 1",
        ),
        (changed("rows", 1, "encode_seconds", value=-1), "encode_seconds '-1' must be a number from 0 on"),
        (changed("suite", 3, "seeds", value=3), "seeds '3' must be a list"),
    ],
)
def test_a_fault_is_named(results, said):
    with pytest.raises(UsageError, match=said):
        check_suite(results, "results.json")


NUMBERS = [
    *((part, 1, key) for part in ("rows", "suite") for key in ("budget", "layer", "num_layers", "tokens_kept_mean",
      "layer_average_tokens", "prefill_flops", "kv_bytes", "rel_acc")),
    *(("rows", 1, key) for key in ("n", "seed", "accuracy", "score", "seconds")),
    *(("suite", 1, key, "gqa") for key in ("scores", "seconds", "tokens_kept")),
    ("suite", 1, "rel_acc_ci95", 0), ("suite", 1, "scores_ci95", "gqa", 1), ("rows", 1, "accuracy_ci95", 0),
    ("comparisons", 0, "difference"), ("comparisons", 0, "budget"), ("comparisons", 0, "ci95", 1),
    ("localizer", "gqa", "n"), ("localizer", "gqa", "mean_recall"), ("localizer", "gqa", "recall_gt_0.5"),
]  # fmt: skip


@pytest.mark.parametrize("path", NUMBERS, ids=str)
def test_an_integer_beyond_floats_is_named(path):
    with pytest.raises(UsageError, match="10000"):
        check_suite(changed(*path, value=HUGE), "results.json")


def test_what_passes_is_shown(tmp_path: Path, monkeypatch):
    """Arms of older suites have no `rel_acc_over`; null is as good."""
    monkeypatch.setattr(page, "figures", lambda *_: {})
    for results in (changed("suite", 1, "rel_acc_over"), changed("suite", 1, "rel_acc_over", value=None)):
        before = copy.deepcopy(results)
        check_suite(results, "results.json")
        assert "4 rows" in page.write(results, tmp_path, "name", tmp_path / "out") and results == before
