"""The tables of a suite in the shapes of the paper's, with benchmarks as columns: which rows go where."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from cropl.evaluation.names import benchmark_name, called, variant
from cropl.evaluation.paper import MARKED, Paper, PaperRow, marked
from cropl.evaluation.reporting.results import Results, Row, compared, known_paper
from cropl.evaluation.reporting.table import Cell, Line, Table
from cropl.evaluation.shapes import budget_key, budgets, pruned
from cropl.evaluation.tables import budget
from cropl.metrics.relative import relative_accuracy

RELACC = "RelAcc is 100 times the mean, over benchmarks, of score / dense score."
PARTLY = "The paper's RelAcc is taken over those of its columns that are scored here, and so may not be as printed."
OTHERS = (
    "{name}: the paper's are {marked:,} questions of TextVQA, marked by hand and not published; ours are {n:,} "
    "{whose}. Accuracies and counts have no difference."
)
SERVED = "* scored by the benchmark's server, and so without an interval."


def tables(suite: Results) -> list[Table]:
    """The tables that a suite names, or else all that its rows can fill; those that they cannot fill are left out."""
    wanted = suite.results.get("tables")
    found = [SHAPES[key](suite, key) for key in (wanted if wanted is not None else _usual_tables(suite))]
    found = [table for table in found if table.lines()]
    controls = _controls(suite)
    return [*found, controls] if controls.lines() else found


def missing(suite: Results) -> list[str]:
    """Tables that the suite names and its rows cannot fill."""
    filled = {table.key for table in tables(suite)}
    return [key for key in suite.results.get("tables") or () if key not in filled]


def _usual_tables(suite: Results) -> list[str]:
    """One table of each shape: the one in which the paper has this model, else the first."""
    chosen: dict[Shape, str] = {}
    for key, shape in SHAPES.items():
        if shape not in chosen or (known_paper(suite, key).known and not known_paper(suite, chosen[shape]).known):
            chosen[shape] = key
    return [key for key in SHAPES if key in chosen.values()]


def _methods(suite: Results, key: str) -> Table:
    """Every method at every budget, with predicted regions where it takes any."""
    return _scores(suite, key, "Methods by budget", compared(suite))


def _strategies(suite: Results, key: str) -> Table:
    """The region alone (`prune`) against ILP, at the budgets of both."""
    both = [row for row in compared(suite) if row["method"] in ("ilp", "prune")]
    asked = [{budget_key(row) for row in both if row["method"] == method} for method in ("ilp", "prune")]
    both = [row for row in both if budget_key(row) in asked[0] & asked[1]]
    return _scores(suite, key, "The region alone, or ILP", sorted(both, key=lambda row: row["method"] == "ilp"))


def _anchors(suite: Results, key: str) -> Table:
    """PLC and what it is without its anchors: every compressor, if there are several."""
    rows = [row for row in compared(suite) if row["method"] == "plc"]
    return _scores(suite, key, "PLC with and without anchors", rows if len(rows) > 1 else [])


def _layers(suite: Results, key: str) -> Table:
    """ILP with predicted regions before every K, down to `prune`, at budgets with several K."""
    rows = [row for row in suite.rows if row["method"] in ("ilp", "prune") and row["region_source"] == "predicted"]
    ilp = [row for row in rows if row["method"] == "ilp"]
    swept = [b for b in budgets(ilp) if len({row["layer"] for row in ilp if budget_key(row) == b}) > 1]
    rows = [row for row in rows if row["budget"] is not None and budget_key(row) in swept]
    rows.sort(key=lambda row: (row["method"] == "prune", -(row["layer"] or 0)))

    def label(row: Row) -> str:
        if row["method"] == "prune":
            return called(row)
        return ", ".join(p for p in (f"{called(row)} (K = {row['layer']})", variant(row, suite.rows)) if p)

    return _scores(suite, key, "The pruning layer K", rows, label)


def _scores(
    suite: Results, key: str, title: str, rows: Sequence[Row], label: Callable[[Row], str] = lambda row: ""
) -> Table:
    counterpart = known_paper(suite, key)
    columns = suite.columns(counterpart, [suite.dense, *rows])
    table = suite.begin(key, title, counterpart, [*map(benchmark_name, columns), "RelAcc", "kept"])
    if not rows:
        return table
    table.groups.append((suite.bound(), [suite.line(suite.dense, counterpart, columns)]))
    for name, group in suite.groups(rows):
        table.groups.append((name, [suite.line(row, counterpart, columns, label(row)) for row in group]))
    table.notes.append(RELACC)
    shown = [row for row in [suite.dense, *rows] if not row.get("infeasible")]
    pairs = [(row, theirs) for row in shown if (theirs := counterpart.row(row)) is not None]
    if any(set(suite.scored(row, columns)) != _with_score(theirs) for row, theirs in pairs):
        table.notes.append(PARTLY)
    if any(cell.source for line in table.lines() for cell in line.cells):
        table.notes.append(SERVED)
    return table


def _with_score(row: PaperRow) -> set[str]:
    return {benchmark for benchmark, score in row.scores.items() if score is not None}


def _seconds(suite: Results, key: str) -> Table:
    """Seconds per benchmark, and their mean share of the dense run's."""
    counterpart = known_paper(suite, key)
    rows = [row for row in compared(suite) if not row.get("infeasible")]
    columns = suite.columns(counterpart, [suite.dense, *rows])
    heads = [*map(benchmark_name, columns), "% of dense"]
    table = suite.begin(key, "Seconds on benchmarks", counterpart, heads)
    if rows:
        table.groups.append((suite.bound(), [_times(suite, suite.dense, counterpart, columns)]))
        table.groups += [
            (name, [_times(suite, row, counterpart, columns) for row in group]) for name, group in suite.groups(rows)
        ]
        table.notes.append("% of dense is the mean, over benchmarks, of seconds / the dense run's seconds.")
    return table


def _times(suite: Results, row: Row, counterpart: Paper, columns: Sequence[str]) -> Line:
    theirs = counterpart.row(row)
    printed = theirs.scores if theirs else {}
    cells = [Cell(row["seconds"].get(one), paper=printed.get(one), digits=_places(row, one)) for one in columns]
    both = {one: row["seconds"][one] for one in columns if row["seconds"].get(one) and suite.dense["seconds"].get(one)}
    share = relative_accuracy(both, suite.dense["seconds"]) if both else None
    cells.append(Cell(share, paper=counterpart.relative(theirs, both) if theirs and both else None))
    return Line(suite.name(row), cells, row["arm"], theirs.name if theirs else None)


def _places(row: Row, benchmark: str) -> int:
    """Digits of seconds: none from 100 on, as the paper has them."""
    return 0 if (row["seconds"].get(benchmark) or 0) >= 100 else 1


def _recall(suite: Results, key: str) -> Table:
    """Area recall of the localizer: questions, mean, and how many are above each threshold."""
    counterpart = known_paper(suite, key)
    thresholds = ("0.5", "0.7", "0.9")
    heads = ["n", "mean", *(f"above {one}" for one in thresholds)]
    table = suite.begin(key, "Area recall of the localizer", counterpart, heads, "benchmark")
    lines = []
    for benchmark, found in (suite.results.get("localizer") or {}).items():
        if not found:
            continue
        theirs, n = counterpart.recall(benchmark) or {}, found["n"]
        cells = [
            Cell(n, paper=theirs.get("n"), digits=0, comparable=False),
            Cell(found["mean_recall"], None, theirs.get("mean"), 4),
        ]
        for one in thresholds:
            share, printed = found[f"recall_gt_{one}"], theirs.get(f"above_{one}")
            same = marked(benchmark, n)  # else counts are of different numbers of questions
            cells.append(Cell(round(share * n), None, printed, 0, comparable=same, share=100 * share))
        lines.append(Line(benchmark_name(benchmark), cells, paper="TextVQA" if theirs else None))
        if theirs and not marked(benchmark, n):
            table.notes.append(_others(benchmark, n))
    if lines:
        table.groups.append(("", lines))
    return table


def _others(benchmark: str, n: int) -> str:
    """A note on questions that the paper's figures beside them are not of."""
    whose = "of Visual-CoT, by exact match" if benchmark.startswith("viscot_") else "others"
    return OTHERS.format(name=benchmark_name(benchmark), marked=MARKED, n=n, whose=whose)


def _sources(suite: Results, key: str) -> Table:
    """ILP with true, predicted, centre and random regions, a group for each benchmark."""
    counterpart = known_paper(suite, key)
    order = ("gt", "predicted", "center", "random")
    ilp = [row for row in pruned(suite.rows) if row["method"] == "ilp" and row["region_source"] in order]
    kept = [source for source in order if any(row["region_source"] == source for row in ilp)]
    titles = {"gt": "GT", "predicted": "Pred", "center": "Center", "random": "Random"}
    table = suite.begin(key, "Region sources", counterpart, ["dense", *(titles[one] for one in kept)], "run")
    runs: dict[tuple[Any, ...], dict[str, Row]] = {}
    for row in ilp:
        run = (row["layer"], row["budget_meaning"], row["budget"], variant(row, suite.rows))
        runs.setdefault(run, {})[row["region_source"]] = row
    for benchmark in suite.benchmarks:
        lines = []
        for (layer, *_, others), found in runs.items():
            if len(found) > 1:
                one = next(iter(found.values()))
                size = budget(one)
                label = [f"{called(one)}, K = {layer}", f"{size} tokens" if size.isdigit() else size, others]
                both = {"dense": suite.dense, **found}
                cells = [_cell(suite, both.get(s), counterpart, s, one, benchmark) for s in ("dense", *kept)]
                theirs = "CROP-ILP" if any(cell.paper is not None for cell in cells) else None
                lines.append(Line(", ".join(part for part in label if part), cells, paper=theirs))
        lines = [line for line in lines if sum(cell.ours is not None for cell in line.cells[1:]) > 1]
        if lines:
            table.groups.append((benchmark_name(benchmark), lines))
            if any(line.paper for line in lines) and not marked(benchmark, suite.asked_of(benchmark)):
                table.notes.append(_others(benchmark, suite.asked_of(benchmark)))
    return table


def _cell(suite: Results, row: Row | None, counterpart: Paper, source: str, one: Row, benchmark: str) -> Cell:
    if row is None:
        return Cell()
    printed = counterpart.source(source, one, benchmark)
    scores, intervals = row.get("scores") or {}, row.get("scores_ci95") or {}
    served = "server" if not row.get("infeasible") and suite.served(row, benchmark) else ""
    text = "infeasible" if row.get("infeasible") else ""
    digits = suite.digits(benchmark, counterpart.table)
    same = marked(benchmark, suite.asked_of(benchmark))
    return Cell(scores.get(benchmark), intervals.get(benchmark), printed, digits, served, same, text)


def _controls(suite: Results) -> Table:
    """What the dense run scores without the picture, or without the evidence in it."""
    rows = [row for row in suite.rows if row.get("control")]
    nothing = Paper(None, "table2")
    columns = suite.columns(nothing, rows)
    heads = [*map(benchmark_name, columns), "RelAcc", "kept"]
    table = Table("controls", "Controls: what the benchmarks measure", "run", heads)
    if rows:
        lines = [suite.line(row, nothing, columns) for row in [suite.dense, *rows]]
        table.groups.append(("", lines))
    return table


Shape = Callable[[Results, str], Table]
SHAPES: Mapping[str, Shape] = {
    "table2": _methods,
    "table3": _methods,
    "table4": _seconds,
    "table5": _strategies,
    "table6": _anchors,
    "table7": _methods,
    "table8": _layers,
    "table9": _recall,
    "table10": _sources,
}
"""How each of the paper's tables is made."""
