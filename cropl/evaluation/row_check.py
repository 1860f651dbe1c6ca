"""What tables and plots need of a file of result rows, checked before any of them is made. No torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

from cropl.errors import UsageError

Check = tuple[str, Callable[[Any], bool]]
"""What a value must be, in words and as a test."""


def is_number(value: Any) -> bool:
    """Whether it is a finite number, and no integer beyond a float."""
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and is_number(value)


def _is_interval(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(map(is_number, value))


def _is_by_kind(value: Any) -> bool:
    kinds = value.values() if isinstance(value, dict) else [None]
    return all(isinstance(kind, dict) and is_number(kind.get("accuracy")) for kind in kinds)


def or_null(check: Check) -> Check:
    """The same, and null passes."""
    return f"{check[0]}, or null", lambda value: value is None or check[1](value)


NUMBER: Check = ("a number", is_number)
POSITIVE: Check = ("a number above 0", lambda value: is_number(value) and value > 0)
SECONDS: Check = ("a number from 0 on", lambda value: is_number(value) and value >= 0)
SHARE: Check = ("a number from 0 to 1", lambda value: is_number(value) and 0 <= value <= 1)
INTEGER: Check = ("an integer", _is_integer)
TEXT: Check = ("text", lambda value: isinstance(value, str))
NAMES: Check = ("a list of names", lambda value: isinstance(value, list) and all(isinstance(one, str) for one in value))
INTERVAL: Check = ("a list of two numbers", _is_interval)

ARM: Mapping[str, Check] = {
    "arm": TEXT, "method": TEXT, "region_source": TEXT, "layer": or_null(INTEGER), "num_layers": INTEGER,
    "budget": or_null(NUMBER), "budget_meaning": TEXT, "model": TEXT,
}  # fmt: skip
"""What tells an arm from others: every row of a suite has it."""

IDENTITY: Mapping[str, Check] = {**ARM, "benchmark": TEXT, "n": POSITIVE, "seed": INTEGER}
"""What every row has."""

MEASURED: Mapping[str, Check] = {
    "accuracy": NUMBER, "accuracy_ci95": INTERVAL, "rel_acc": or_null(NUMBER), "tokens_kept_mean": POSITIVE,
    "layer_average_tokens": NUMBER, "prefill_flops": POSITIVE, "kv_bytes": NUMBER, "seconds": POSITIVE,
    "accuracy_by_kind": ("a mapping of kinds to their accuracy", _is_by_kind),
}  # fmt: skip
"""What a row has as well unless its budget is infeasible."""

JUDGED = ("accuracy", "accuracy_ci95", "accuracy_by_kind")
"""What is null where the answers are scored elsewhere, `score_source` "server"."""

COMPARISON: Mapping[str, Check] = {
    "a": TEXT, "b": TEXT, "budget": or_null(NUMBER), "difference": NUMBER, "ci95": INTERVAL
}  # fmt: skip

OPTIONAL: Mapping[str, Check] = {
    "positions": TEXT,
    "model_name": TEXT,
    "family": TEXT,
    "control": TEXT,
    "infeasible": TEXT,
    "seeds": ("a list", lambda value: isinstance(value, list)),
    "options": ("a mapping", lambda value: isinstance(value, dict)),
    "versions": ("a mapping", lambda value: isinstance(value, dict)),
    "prefill_flops_with_localizer": POSITIVE,
    "images": POSITIVE,
    "encode_seconds": SECONDS,
    "localizer_seconds": SECONDS,
    "score": NUMBER,
    "score_ci95": INTERVAL,
    "score_source": TEXT,
    "scorer": TEXT,
}


def check_results(results: Any, where: str) -> None:
    """UsageError, with the file `where` and the number of the row, unless every row can be shown.

    Rows are counted from 1. The first fault is told: what is missing, or is not what it must be.
    """
    if not isinstance(results, dict) or not isinstance(results.get("rows"), list) or not results["rows"]:
        raise UsageError(f"{where}: holds no rows; give the results.json of `cropl evaluate`")
    rows, comparisons = results["rows"], results.get("comparisons") or []
    for number, row in enumerate(rows, start=1):
        check_row(row, IDENTITY, f"{where}: row {number}")
        check_optional(row, OPTIONAL, f"{where}: row {number}")
        if not row.get("infeasible"):
            elsewhere = row.get("score_source") == "server"
            measured = {key: or_null(one) if elsewhere and key in JUDGED else one for key, one in MEASURED.items()}
            check_row(row, measured, f"{where}: row {number} ({row['arm']})")
    check_dense(rows, where)
    if not isinstance(comparisons, list):
        raise UsageError(f"{where}: comparisons must be a list; give the results.json of `cropl evaluate`")
    for number, one in enumerate(comparisons, start=1):
        check_row(one, COMPARISON, f"{where}: comparison {number}")


def check_dense(rows: list[Any], where: str) -> None:
    """UsageError unless one of the rows is the dense run's."""
    if not any(r["method"] == "dense" and not r.get("control") and not r.get("infeasible") for r in rows):
        raise UsageError(f"{where}: no row is the dense run's, which all others are compared with")


def check_optional(row: Any, checks: Mapping[str, Check], where: str) -> None:
    """As `check_row`; what is null or missing passes."""
    for name, check in checks.items():
        check_row({name: None, **row}, {name: or_null(check)}, where)


def check_row(row: Any, checks: Mapping[str, Check], where: str) -> None:
    """UsageError unless a row is a mapping with all of these values."""
    if not isinstance(row, dict):
        raise UsageError(f"{where} is no mapping of names to values, but {str(row)[:40]!r}; run `cropl evaluate` again")
    if missing := [name for name in checks if name not in row]:
        raise UsageError(f"{where} has no {', '.join(missing)}; run `cropl evaluate` again")
    for name, (kind, test) in checks.items():
        if not test(row[name]):
            raise UsageError(f"{where}: {name} {str(row[name])[:40]!r} must be {kind}; run `cropl evaluate` again")
    if "layer" in checks and row["method"] == "ilp" and row["layer"] is None:
        raise UsageError(f"{where}: layer is null, and ILP has one; run `cropl evaluate` again")
