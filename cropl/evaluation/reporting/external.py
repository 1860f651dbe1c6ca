"""Scores that a benchmark's server gave: they fill its cells, and RelAcc is taken again with them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cropl.errors import UsageError, nearest
from cropl.evaluation.row_check import is_number
from cropl.evaluation.shapes import dense_of
from cropl.evaluation.suite import relative_over
from cropl.metrics.relative import relative_accuracy


def read_scores(path: Path) -> dict[str, float]:
    """`{arm: score}` of a JSON file, in the benchmark's own unit: percent, or points.

    Raises:
        UsageError: it cannot be read, or holds anything else.
    """
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not readable as JSON ({error}); give {{arm: score}}") from None
    if not isinstance(found, dict) or not found:
        raise UsageError(f"{path}: must hold a score for each arm, such as {{\"dense\": 78.5}}")  # fmt: skip
    for arm, score in found.items():
        if not is_number(score) or score < 0:
            raise UsageError(f"{path}: the score of {arm!r} is {str(score)[:40]!r}, and must be a number from 0 on")
    if share := next((arm for arm, score in found.items() if 0 < score <= 1), None):
        raise UsageError(
            f"{path}: the score of {share!r} is {found[share]}; give percent, or the benchmark's points, not shares"
        )
    if not any(found.values()):
        raise UsageError(f"{path}: no score is above 0")
    return found


def with_scores(results: Mapping[str, Any], benchmark: str, scores: Mapping[str, float]) -> dict[str, Any]:
    """The results of a suite with a server's scores in the place of those that are missing.

    Args:
        results: what `results.json` of a suite holds; it is not changed.
        benchmark: whose cells are filled.
        scores: by arm; those of controls may be left out.

    Raises:
        UsageError: no such benchmark, it has scores already, or an arm is unknown or without a score.
    """
    if benchmark not in results["benchmarks"]:
        near = nearest(benchmark, results["benchmarks"])
        raise UsageError(f"external: {benchmark!r} is no benchmark of this suite{near}")
    feasible = [row for row in results["rows"] if row["benchmark"] == benchmark and not row.get("infeasible")]
    if there := [row["arm"] for row in feasible if row.get("score") is not None]:
        raise UsageError(
            f"external: {benchmark} is scored already, such as of {there[0]}; a server's score is no other"
        )
    known = [row["arm"] for row in feasible]
    if unknown := [arm for arm in scores if arm not in known]:
        raise UsageError(
            f"external: {benchmark} has no arm {unknown[0]!r} that was answered{nearest(unknown[0], known)}"
        )
    if absent := [row["arm"] for row in feasible if not row.get("control") and row["arm"] not in scores]:
        raise UsageError(
            f"external: {benchmark} has no score of {', '.join(absent)}; submit them, or give their scores"
        )

    dense = dense_of(results["suite"])
    assert dense is not None, "a suite is checked before"
    reference = {**dense["scores"], benchmark: scores[dense["arm"]]}
    reference = {name: score for name, score in reference.items() if score is not None and score > 0}
    over, suite = relative_over(results["rows"], results["benchmarks"]), []
    for row in results["suite"]:
        if row["arm"] in scores:
            mine = {**row["scores"], benchmark: scores[row["arm"]]}
            shared = [name for name in over[row["arm"]] if mine.get(name) is not None and name in reference]
            row = {**row, "scores": mine, "rel_acc_over": shared}
            if benchmark in shared:
                row |= {"rel_acc": relative_accuracy({one: mine[one] for one in shared}, reference)}
                row |= {"rel_acc_ci95": None}
        suite.append(row)
    dense_score = reference.get(benchmark)
    rows = [
        _scored(row, scores[row["arm"]], dense_score) if row["benchmark"] == benchmark and row["arm"] in scores else row
        for row in results["rows"]
    ]
    return {**results, "suite": suite, "rows": rows}


def _scored(row: Mapping[str, Any], score: float, dense: float | None) -> Mapping[str, Any]:
    relative = 100 * score / dense if dense else None
    return {
        **row,
        "score": score,
        "score_source": "server",
        "rel_acc": relative,
        "score_ci95": None,
        "rel_acc_sd": None,
    }
