"""The paper's own figures, and which of its rows a row of ours is to be held against: the one place that says so.

Its figures are data (`benchmarks/paper.yaml`), under its own names of methods and models.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from cropl.errors import UsageError, nearest
from cropl.evaluation.arms import PRESETS
from cropl.metrics.relative import relative_accuracy

Row = Mapping[str, Any]

LAYER = 2
"""K of every CROP-ILP of the paper but those of Table 8."""
ANCHORS = 4
"""Tokens that PLC has beyond the budget under which the paper tables it."""
TIMED = "LLaVA-NeXT-13B"
"""Whose pruned runs Table 4 times; of the other model it has the dense run alone."""

BOXED = ("textvqa", "viscot_textvqa")
"""Benchmarks that Tables 9 and 10 stand beside: the paper marked 3,000 questions of TextVQA by hand, Visual-CoT 526."""
MARKED = 3000
"""Questions of those two tables."""

METHODS = {"fastv": "FastV", "sparsevlm": "SparseVLM", "pyramiddrop": "PDrop", "prune": "prune"}
"""What the paper calls methods whose name depends on nothing else."""
POSITIONS = {"fastv": "original", "ilp": "original"}
"""Where a method's survivors stand as published; those of all others are counted anew, "compact"."""


@cache
def figures() -> Mapping[str, Any]:
    """The whole data file: tables by name."""
    text = files("cropl.benchmarks").joinpath("paper.yaml").read_text(encoding="utf-8")
    found: Mapping[str, Any] = yaml.safe_load(text)
    return found


def models() -> list[str]:
    """Every model that a table has figures of."""
    found = [model for table in figures().values() for model in table.get("models", {})]
    return list(dict.fromkeys([*found, *(name for name in figures()["table4"]["seconds"]["dense"])]))


def check(model: str | None, tables: Iterable[str] | None) -> None:
    """UsageError unless the paper has this model and these tables; None is none of them, and passes."""
    if model is not None and model not in models():
        raise UsageError(f"paper: no figures of a model {model!r}{nearest(str(model), models())}")
    for table in tables or ():
        if table not in figures():
            raise UsageError(f"tables: the paper has no {table!r}{nearest(str(table), list(figures()))}")


@dataclass(frozen=True)
class PaperRow:
    """A row as printed.

    Attributes:
        name: the paper's name of the method.
        scores: by benchmark; None where its cell is empty. In Table 4 seconds.
        rel_acc: its average as printed; None where it has none.
    """

    name: str
    scores: Mapping[str, float | None]
    rel_acc: float | None = None


class Paper:
    """One table of the paper, as far as it is about one model.

    Attributes:
        table: its name, "table2".
        title, notes: of the data file.
        columns: its benchmarks; empty in Table 9, and region sources in Table 10.
    """

    def __init__(self, model: str | None, table: str) -> None:
        """The figures of `model` in `table`; a model that it does not have, or None, has no counterparts.

        Raises:
            UsageError: the paper has no such table, or no such model in any of them.
        """
        check(model, [table])
        data = figures()[table]
        self.table, self.title = table, str(data["title"])
        self.notes: list[str] = list(data.get("notes", []))
        self.columns: list[str] = list(data.get("columns", []))
        self._recall: Mapping[str, float] = data.get("recall", {}) if model is not None else {}
        self._sources: list[float] = []
        self._groups: Mapping[Any, Mapping[str, list[float | None]]] = {}
        if table == "table10":
            self._sources = data["models"].get(model, [])
        elif table == "table4":
            dense = {name: line for name, line in data["seconds"]["dense"].items() if name == model}
            self._groups = {**(data["seconds"] if model == TIMED else {}), "dense": dense}
        elif "models" in data:
            self._groups = data["models"].get(model, {})

    @property
    def known(self) -> bool:
        """Whether the table has figures of the model."""
        return bool(self._recall or self._sources or any(self._groups.values()))

    def row(self, row: Row) -> PaperRow | None:
        """The counterpart of a row of a suite; None where the paper has none."""
        name = self._name(row)
        line = self._groups.get(_group(row), {}).get(name) if name else None
        if name is None or line is None:
            return None
        scores = dict(zip(self.columns, line, strict=False))
        return PaperRow(name, scores, line[len(self.columns)] if len(line) > len(self.columns) else None)

    def relative(self, row: PaperRow, benchmarks: Iterable[str]) -> float | None:
        """RelAcc of a row over these benchmarks: as printed where they are all that it has, else from its cells."""
        scores = {one: row.scores[one] for one in benchmarks if row.scores.get(one) is not None}
        if not scores:
            return None
        if row.rel_acc is not None and set(scores) == {one for one, score in row.scores.items() if score is not None}:
            return row.rel_acc
        [dense] = self._groups["dense"].values()
        return relative_accuracy(scores, dict(zip(self.columns, dense, strict=False)))

    def source(self, source: str, row: Row, benchmark: str) -> float | None:
        """Table 10: the accuracy with regions of this source ("dense" for none) of a run like `row`."""
        if not self._sources or benchmark not in BOXED or source not in self.columns:
            return None
        if (row["method"], row["layer"]) != ("ilp", LAYER) or row.get("model_name") or not _as_published(row):
            return None
        return self._sources[self.columns.index(source)]

    def recall(self, benchmark: str) -> Mapping[str, float] | None:
        """Table 9: `n`, `mean` and the counts `above_0.5`, ... of a benchmark; the paper has those of TextVQA."""
        return self._recall if self._recall and benchmark in BOXED else None

    def _name(self, row: Row) -> str | None:
        """What the paper calls the run of a row, in this table; None for settings that are not the paper's."""
        if row.get("control") or row["region_source"] not in ("predicted", "none") or not _as_published(row):
            return None
        method, layer, other = str(row["method"]), row["layer"], row.get("model_name")
        match method:
            case "dense":
                return next(iter(self._groups.get("dense", {})), None)
            case "visionzip":
                return "VisionZip‡" if other else "VisionZip"
            case "plc":
                return "w/o X^r" if "no_anchor" in str(other or row["model"]) else "CROP-PLC"
            case "ilp" if self.table == "table8":
                return None if other else f"CROP-ILP(K={layer})"
            case "ilp":
                return "CROP-ILP" if layer == LAYER and not other else None
            case "fastv" if layer != LAYER:
                return None
        return None if other else METHODS.get(method)


def _as_published(row: Row) -> bool:
    """Whether a run has no arguments and positions but those that its method has by itself."""
    method, preset = row["method"], PRESETS.get(row["method"], {})
    own = POSITIONS.get(method, "compact")
    given = {key: value for key, value in (row.get("options") or {}).items() if (method, key) != ("plc", "compressor")}
    return row.get("positions") in (None, own) and all(preset.get(key) == value for key, value in given.items())


def marked(benchmark: str, n: int) -> bool:
    """Whether so many questions of a benchmark can be those of Tables 9 and 10."""
    return (benchmark, n) == (BOXED[0], MARKED)


def tabled(row: Row) -> int | float | None:
    """The budget under which a row stands: its own, and for PLC what it keeps less the anchors; None without one."""
    if row["method"] == "plc" and row["budget"] is None and row.get("tokens_kept_mean") is not None:
        return round(row["tokens_kept_mean"]) - ANCHORS
    budget: int | float | None = row["budget"]
    return budget


def _group(row: Row) -> int | str | None:
    if row["method"] == "dense":
        return "dense"
    budget = tabled(row)
    return f"{100 * budget:.3g}%" if isinstance(budget, float) else budget
