"""What a suite's tables are made from: its rows by their place, and cells with the paper's figures beside ours."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import Any

from cropl.evaluation import names, paper
from cropl.evaluation.paper import LAYER, Paper, PaperRow, tabled
from cropl.evaluation.reporting.table import Cell, Line, Table
from cropl.evaluation.shapes import asked, budget_key, dense_of, pruned, usual
from cropl.metrics.relative import relative_accuracy

Row = Mapping[str, Any]
Group = tuple[str, list[Row]]

EXACT = ("table7", "table8", "table10")
"""Tables that the paper prints with two digits behind the point."""


class Results:
    """One suite: `results.json` with "kind": "suite"."""

    def __init__(self, results: Mapping[str, Any]) -> None:
        self.results = results
        self.rows: list[Row] = list(results["suite"])
        self.benchmarks: list[str] = list(results["benchmarks"])
        self.paper: str | None = results.get("paper")

    @cached_property
    def dense(self) -> Row:
        """The dense run."""
        found = dense_of(self.rows)
        assert found is not None, "a suite is checked before it is shown"
        return found

    @cached_property
    def points(self) -> set[str]:
        """Benchmarks that are scored in points, not in percent."""
        return {row["benchmark"] for row in self.results["rows"] if row.get("scorer") == "mme"}

    def digits(self, benchmark: str, table: str = "") -> int:
        """Behind the point of a score."""
        return 0 if benchmark in self.points else 2 if self.paper and table in EXACT else 1

    def served(self, row: Row, benchmark: str) -> bool:
        """Whether a server gave this score."""
        return any(
            one["arm"] == row["arm"] and one["benchmark"] == benchmark and one.get("score_source") == "server"
            for one in self.results["rows"]
        ) and row["scores"].get(benchmark) is not None  # fmt: skip

    def name(self, row: Row) -> str:
        """What a person calls the run of a row."""
        return names.name(row, self.rows)

    @cached_property
    def asked(self) -> set[tuple[str, str]]:
        """(arm, benchmark) of everything that was run, or found infeasible: a benchmark may have arms of its own."""
        return {(row["arm"], row["benchmark"]) for row in self.results["rows"]}

    def asked_of(self, benchmark: str) -> int:
        """Questions of a benchmark."""
        return next(int(row["n"]) for row in self.results["rows"] if row["benchmark"] == benchmark)

    def columns(self, counterpart: Paper, rows: Sequence[Row]) -> list[str]:
        """The benchmarks of a table: those on which all its rows were run, and of them those that the paper's has.

        So that RelAcc of one row is over the same benchmarks as that of the next. Where they have none in common, all.
        """
        shared = [one for one in self.benchmarks if all((row["arm"], one) in self.asked for row in rows)]
        shared = shared or self.benchmarks
        known = [one for one in shared if one in counterpart.columns] if counterpart.known else []
        return known or shared

    def begin(self, key: str, title: str, counterpart: Paper, columns: Sequence[str], head: str = "method") -> Table:
        """An empty table: under the paper's own title and with its notes where it has figures of this model."""
        number = key.removeprefix("table")
        if counterpart.known:
            return Table(
                key, f"Table {number}: {counterpart.title}", head, list(columns), notes=list(counterpart.notes)
            )
        return Table(key, f"{title} (the shape of the paper's Table {number})", head, list(columns))

    def groups(self, rows: Sequence[Row]) -> list[Group]:
        """Rows by budget, PLC's under the one that the paper tables it with; the largest first, then those without."""
        found: dict[tuple[str, float], list[Row]] = {}
        for row in rows:
            found.setdefault((row["budget_meaning"], tabled(row) or 0), []).append(row)
        groups = []
        for key in sorted(found, key=lambda key: (key[0] != "post_prune", key[1] == 0, -key[1])):
            budget = tabled(found[key][0])
            groups.append((asked({**found[key][0], "budget": budget}) if budget else "no budget", found[key]))
        return groups

    def bound(self) -> str:
        """The label of the dense run's group."""
        return f"upper bound, {self.dense['tokens_kept_mean']:.0f} tokens"

    def line(self, row: Row, counterpart: Paper, columns: Sequence[str], label: str = "") -> Line:
        """A run's scores, RelAcc and tokens, each beside the paper's."""
        theirs = counterpart.row(row)
        cells = [self._score(row, one, theirs, counterpart.table) for one in columns]
        if not row.get("infeasible"):
            cells += [self._relative(row, counterpart, theirs, columns), Cell(row["tokens_kept_mean"])]
        else:
            printed = counterpart.relative(theirs, columns) if theirs else None
            cells += [Cell(text="infeasible", paper=printed), Cell()]
        return Line(label or self.name(row), cells, row["arm"], theirs.name if theirs else None)

    def scored(self, row: Row, columns: Sequence[str]) -> list[str]:
        """The benchmarks on which a row has a score, and the dense run one that it can be held against."""
        return [
            one
            for one in columns
            if row["scores"].get(one) is not None and (self.dense["scores"].get(one) or 0) > 0
        ]  # fmt: skip

    def _score(self, row: Row, benchmark: str, theirs: PaperRow | None, table: str) -> Cell:
        return Cell(
            (row.get("scores") or {}).get(benchmark),
            (row.get("scores_ci95") or {}).get(benchmark),
            theirs.scores.get(benchmark) if theirs else None,
            self.digits(benchmark, table),
            "server" if not row.get("infeasible") and self.served(row, benchmark) else "",
        )

    def relative(self, row: Row, columns: Sequence[str]) -> tuple[float | None, Sequence[float] | None]:
        """RelAcc over these benchmarks, with its interval: as the suite has it where it is over the same ones.

        Else it is taken from the scores, and has no interval.
        """
        mine, over = self.scored(row, columns), row.get("rel_acc_over")
        if set(mine) == set(self.scored(row, self.benchmarks) if over is None else over):
            return row["rel_acc"], row.get("rel_acc_ci95")
        scores = {one: row["scores"][one] for one in mine}
        return (relative_accuracy(scores, self.dense["scores"]) if mine else None), None

    def _relative(self, row: Row, counterpart: Paper, theirs: PaperRow | None, columns: Sequence[str]) -> Cell:
        mine = self.scored(row, columns)
        printed = counterpart.relative(theirs, mine) if theirs else None
        same = theirs is not None and all(theirs.scores.get(one) is not None for one in mine)
        return Cell(*self.relative(row, columns), printed, comparable=same)


def known_paper(suite: Results, table: str) -> Paper:
    """The figures of the suite's model in a table; without counterparts where the suite names no model of the paper."""
    return paper.Paper(suite.paper, table)


def compared(suite: Results) -> list[Row]:
    """Rows that drop something, ILP before one K at each budget: the paper's where its figures stand beside ours.

    Else, and where that K was not run, it is the usual one.
    """
    rows = [row for row in pruned(suite.rows) if row["region_source"] in ("predicted", "none")]
    layers: dict[tuple[str, int | float], int | None] = {}
    for row in rows:
        mine = [one for one in rows if one["method"] == "ilp" and budget_key(one) == budget_key(row)]
        known = {one["layer"] for one in mine}
        choice = LAYER if suite.paper is not None and LAYER in known else usual(rows)
        layers[budget_key(row)] = choice if choice in known else usual(mine)
    return [row for row in rows if row["method"] != "ilp" or row["layer"] == layers[budget_key(row)]]
