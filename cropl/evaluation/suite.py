"""A suite: the same arms on several benchmarks, and what they come to together. No torch.

Each benchmark is a recipe of its own, and with the suite's keys it becomes a `Study`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

from cropl import recipe
from cropl.errors import UsageError, check_keys
from cropl.evaluation import paper, schema
from cropl.evaluation.study import Study
from cropl.metrics.relative import relative_accuracy

Row = Mapping[str, Any]

OWN = ("benchmarks", "paper", "tables")
"""Keys of a suite that are none of a study's."""

OF_BENCHMARK = ("benchmark", "scorer", "annotations", "data", "prompt", "max_new_tokens", "prepare", "regions")
"""Keys of a benchmark's recipe (and `vars`)."""

INSTEAD = ("arms", "controls", "limit")
"""Keys of a suite that one of its benchmarks may have otherwise."""

TABLES = tuple(f"table{number}" for number in range(2, 11))


@dataclass(frozen=True)
class Suite:
    """A checked suite.

    Attributes:
        studies: one per benchmark; their names differ.
        prepare: for each of them, `class_path` and `init_args` of what is called before its data is read, or None.
        paper: the model of `benchmarks/paper.yaml` whose figures stand beside ours; None for no figures.
        tables: which of the paper's tables a report makes; None is every shape that the rows can fill.
        out: where results go.
    """

    studies: tuple[Study, ...]
    prepare: tuple[Mapping[str, Any] | None, ...]
    paper: str | None = None
    tables: tuple[str, ...] | None = None
    out: str | None = None

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> Suite:
        """Check a merged recipe with the key `benchmarks`, and load the recipes of those.

        The `vars` of the suite take the place of those with the same names in a benchmark's recipe.

        Raises:
            UsageError: a wrong key or value; the message names it, and the benchmark.
        """
        known = [f.name for f in fields(Study) if f.name not in OF_BENCHMARK or f.name == "regions"]
        check_keys(dict(config), [*known, *OWN, "vars"], "suite")
        schema.text(config, "paper", null=True)
        paper.check(config.get("paper"), None)
        variables = schema.mapping(config.get("vars"), "suite: vars")
        listed = schema.each(config["benchmarks"])
        if not listed:
            raise UsageError("suite: benchmarks is an empty list; name recipes, such as benchmark/gqa")
        tables = config.get("tables")
        for table in schema.each(tables or []):
            schema.one_of(table, TABLES, "suite: tables")
        shared = {key: value for key, value in config.items() if key not in (*OWN, "vars")}
        studies, prepare = [], []
        for entry in listed:
            own = _benchmark(entry, variables)
            prepare.append(own.pop("prepare", None))
            try:
                limits = [one["limit"] for one in (shared, own) if one.get("limit") is not None]
                least = {"limit": limits[0]} if len(limits) == 1 else {}
                if len(limits) == 2 and all(isinstance(limit, int) for limit in limits):
                    least = {"limit": min(limits)}
                studies.append(Study.from_config({**shared, **own, **least}))
            except UsageError as error:
                raise UsageError(f"{_name(entry)}: {error}") from None
        names = [study.benchmark for study in studies]
        for name in names:
            if names.count(name) > 1 or "/" in name or name.startswith("."):
                raise UsageError(f"suite: {name!r} names two benchmarks, or no folder of results: change `benchmark`")
        return cls(
            tuple(studies),
            tuple(prepare),
            config.get("paper"),
            None if tables is None else tuple(schema.each(tables)),
            config.get("out"),
        )


def _name(entry: Any) -> str:
    """The recipe of an entry: a name or path, or a mapping with `recipe` and keys that replace some of it."""
    name = entry.get("recipe") if isinstance(entry, Mapping) else entry
    if not isinstance(name, str) or not name:
        raise UsageError(f"suite: a benchmark must be a recipe's name, or a mapping with `recipe`, not {entry!r}")
    return name


def _benchmark(entry: Any, variables: Mapping[str, Any]) -> dict[str, Any]:
    name = _name(entry)
    recipe.expect("scorer", name)
    changes = {key: value for key, value in entry.items() if key != "recipe"} if isinstance(entry, Mapping) else {}
    own = schema.mapping(changes.pop("vars", None), f"{name}: vars")
    theirs = recipe.load([name]).get("vars") or {}
    given = {f"vars.{key}": value for key, value in variables.items() if key in theirs}
    given |= {f"vars.{key}": value for key, value in own.items()}
    return checked_benchmark({**recipe.load([name], given), **changes}, name)


def checked_benchmark(found: Mapping[str, Any], name: str) -> dict[str, Any]:
    """A merged recipe of a benchmark without its `vars`; UsageError for a key that is wrong or missing."""
    check_keys(dict(found), [*OF_BENCHMARK, *INSTEAD, "vars"], name)
    for key in ("benchmark", "data"):
        if not found.get(key):
            raise UsageError(f"{name}: key {key!r} is missing")
    return {key: value for key, value in found.items() if key != "vars"}


SHARED = (
    "arm", "method", "region_source", "layer", "num_layers", "budget", "budget_meaning", "positions", "options",
    "model", "model_name", "control", "infeasible", "seeds",
)  # fmt: skip


def summarize(rows: Sequence[Row], benchmarks: Sequence[str]) -> list[dict[str, Any]]:
    """One row per arm over all benchmarks, in the order of the arms.

    Costs are means over the benchmarks that have the arm. RelAcc is the paper's, the mean of score / dense score: over
    the benchmarks with the suite's own arms, so that it is of the same ones in all rows; for an arm that none of them
    has, over those that have it.
    """
    by_arm: dict[str, dict[str, Row]] = {}
    for row in rows:
        by_arm.setdefault(row["arm"], {})[row["benchmark"]] = row
    dense, over = _scores(by_arm["dense"]), relative_over(rows, benchmarks)
    return [_summary(found, dense, benchmarks, over[arm]) for arm, found in by_arm.items()]


def relative_over(rows: Sequence[Row], benchmarks: Sequence[str]) -> dict[str, list[str]]:
    """The benchmarks that RelAcc of each arm is over, as far as they have scores; see `summarize`."""
    arms = [tuple(row["arm"] for row in rows if row["benchmark"] == name) for name in benchmarks]
    usual = [name for name, mine in zip(benchmarks, arms, strict=True) if mine == max(arms, key=arms.count)]
    asked: dict[str, list[str]] = {}
    for name, mine in zip(benchmarks, arms, strict=True):
        for arm in mine:
            asked.setdefault(arm, []).append(name)
    return {arm: [name for name in usual if name in names] or names for arm, names in asked.items()}


def _summary(
    found: Mapping[str, Row], dense: Mapping[str, float | None], benchmarks: Sequence[str], over: Sequence[str]
) -> dict[str, Any]:
    first = next(iter(found.values()))
    scores = {name: _scores(found).get(name) for name in benchmarks}
    relative = interval = None
    shared = [name for name in over if scores[name] is not None and (dense[name] or 0) > 0]
    if shared:
        relative = relative_accuracy({name: scores[name] for name in shared}, dense)
        # Benchmarks are drawn each by itself, so that the variances of their ratios add up.
        spread = math.sqrt(sum(found[name]["rel_acc_sd"] ** 2 for name in shared)) / len(shared)
        interval = [relative - 1.96 * spread, relative + 1.96 * spread]
    told = [row["infeasible"] for row in found.values() if row["infeasible"]]  # on one benchmark is on the whole
    return {
        **{key: first[key] for key in SHARED},
        "infeasible": told[0] if told else None,
        "scores": scores,
        "scores_ci95": {name: found[name]["score_ci95"] if name in found else None for name in benchmarks},
        "rel_acc": relative,
        "rel_acc_over": shared,
        "rel_acc_ci95": interval,
        "tokens_kept": {name: row["tokens_kept_mean"] for name, row in found.items()},
        **{
            key: _mean([row[key] for row in found.values()])
            for key in ("tokens_kept_mean", "layer_average_tokens", "prefill_flops", "prefill_flops_with_localizer",
                        "kv_bytes")
        },
        "seconds": {name: _seconds(row) for name, row in found.items()},
    }  # fmt: skip


def _scores(found: Mapping[str, Row]) -> dict[str, float | None]:
    return {name: row["score"] for name, row in found.items()}


def _seconds(row: Row) -> float | None:
    """Of all questions, each with its own pass of the vision tower, and with what told the regions or their size.

    None where the budget is infeasible, or nobody measured what told the regions.
    """
    if row["seconds"] is None:
        return None
    localizing: float | None = 0.0
    if row["region_source"] not in ("gt", "none"):
        localizing = row["localizer_seconds"] if row["region_source"] in ("predicted", "center", "random") else None
    if localizing is None:
        return None
    encoding = row["encode_seconds"] / row["images"] * (row["n"] - row["text_only"])
    return float(row["seconds"] + row["text_only_seconds"] + encoding + localizing)


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if len(known) == len(values) else None


def together(suite: Suite, label: str, found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """What the suite's `results.json` holds, from those of its benchmarks by their names."""
    names = list(found)
    rows = [row for results in found.values() for row in results["rows"]]
    return {
        "kind": "suite",
        "benchmarks": names,
        "paper": suite.paper,
        "tables": None if suite.tables is None else list(suite.tables),
        "recipe": label,
        "rows": rows,
        "suite": summarize(rows, names),
        "localizer": {name: results["localizer"] for name, results in found.items()},
        "comparisons": [
            {**one, "benchmark": name} for name, results in found.items() for one in results["comparisons"]
        ],
    }
