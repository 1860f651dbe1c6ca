"""What the report of a suite needs of its `results.json`, checked before any of it is made. No torch."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from cropl.errors import UsageError
from cropl.evaluation import paper
from cropl.evaluation.row_check import (
    ARM,
    INTERVAL,
    NAMES,
    NUMBER,
    OPTIONAL,
    POSITIVE,
    SHARE,
    TEXT,
    Check,
    check_dense,
    check_optional,
    check_results,
    check_row,
    or_null,
)

KIND = "suite"
"""What `results.json` of a suite says of itself."""


def _by_benchmark(check: Check, nulls: bool = True) -> Check:
    kind, test = check

    def holds(value: Any) -> bool:
        return isinstance(value, dict) and all((nulls and one is None) or test(one) for one in value.values())

    return f"a mapping of benchmarks, each to {kind}{' or null' if nulls else ''}", holds


MEASURED: Mapping[str, Check] = {
    "scores": _by_benchmark(NUMBER), "tokens_kept_mean": POSITIVE, "layer_average_tokens": NUMBER,
    "prefill_flops": POSITIVE, "kv_bytes": POSITIVE, "seconds": _by_benchmark(POSITIVE), "rel_acc": or_null(NUMBER),
}  # fmt: skip
"""What an arm has unless its budget is infeasible."""

PERHAPS: Mapping[str, Check] = {
    "rel_acc_ci95": INTERVAL, "scores_ci95": _by_benchmark(INTERVAL), "tokens_kept": _by_benchmark(NUMBER),
    "rel_acc_over": NAMES,
}  # fmt: skip

RECALL: Mapping[str, Check] = {
    "n": POSITIVE, "mean_recall": SHARE, "recall_gt_0.5": SHARE, "recall_gt_0.7": SHARE, "recall_gt_0.9": SHARE
}  # fmt: skip


def is_suite(results: Any) -> bool:
    """Whether these are the results of a suite, not of a single study."""
    return isinstance(results, dict) and results.get("kind") == KIND


def check_suite(results: Mapping[str, Any], where: str) -> None:
    """UsageError, with the file `where` and what is wrong there, unless the suite can be shown."""
    check_results(results, where)
    benchmarks, arms = results.get("benchmarks"), results.get("suite")
    if not benchmarks or not NAMES[1](benchmarks):
        raise UsageError(f"{where}: benchmarks must be a list of names; run `cropl evaluate` again")
    if not isinstance(arms, list) or not arms:
        raise UsageError(f"{where}: suite holds no arms; run `cropl evaluate` again")
    tables = results.get("tables")
    if tables is not None and not NAMES[1](tables):
        raise UsageError(f"{where}: tables must be a list of the paper's tables, such as [table2], or null")
    try:
        paper.check(results.get("paper"), tables)
    except UsageError as error:
        raise UsageError(f"{where}: {error}") from None
    for number, row in enumerate(arms, start=1):
        place = f"{where}: arm {number}"
        check_row(row, ARM, place)
        check_optional(row, {**OPTIONAL, **PERHAPS, **MEASURED}, place)
        if not row.get("infeasible"):
            check_row(row, MEASURED, f"{place} ({row['arm']})")
    check_dense(arms, where)
    known = {row["arm"] for row in arms}
    for number, row in enumerate(results["rows"], start=1):
        if row["benchmark"] not in benchmarks or row["arm"] not in known:
            raise UsageError(f"{where}: row {number} ({row['arm']} on {row['benchmark']}) is of no arm of the suite")
    for number, one in enumerate(results.get("comparisons") or [], start=1):
        check_row(one, {"benchmark": TEXT}, f"{where}: comparison {number}")
    localizer = results.get("localizer") or {}
    check_row(localizer, {}, f"{where}: localizer")
    for benchmark, found in localizer.items():
        if found:
            check_row(found, RECALL, f"{where}: localizer on {benchmark}")
