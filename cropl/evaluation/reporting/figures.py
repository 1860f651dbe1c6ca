"""Plots of a suite as SVG text: scores and RelAcc against tokens, the sweep over K, and the localizer's area recall.

Filled markers are ours, with 95 % intervals; hollow ones, on dotted lines, are the paper's where it has the same run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from cropl.evaluation.names import benchmark_name
from cropl.evaluation.paper import Paper
from cropl.evaluation.plot import COLORS, pareto
from cropl.evaluation.reporting.drawing import INK, Plot, Point, add_legend, as_svg, draw_line, drawing, token_ticks
from cropl.evaluation.reporting.results import Results, Row, compared, known_paper
from cropl.evaluation.shapes import budget_key, budgets

RELACC = "RelAcc"


BY_METHOD = ("table2", "table3", "table7")
"""Tables of the paper whose runs stand by method and budget, as the plots against tokens do."""
OTHERS = ("table5", "table6", "table8")
"""Tables with runs and scores of their own: theirs are drawn where a suite is of them."""


def figures(suite: Results, recalls: Mapping[str, Sequence[float]]) -> dict[str, Plot]:
    """Every plot that the suite fills, by a short name.

    Args:
        suite: whose rows are drawn.
        recalls: area recall of each question with boxes, by benchmark.
    """
    found = {
        "scores": _against_tokens(suite, suite.benchmarks),
        "rel_acc": _against_tokens(suite, [RELACC], front=True),
        "layers": _against_layers(suite),
        "recall": _recall({name: values for name, values in recalls.items() if values}),
    }
    return {name: plot for name, plot in found.items() if plot is not None}


@dataclass(frozen=True)
class _View:
    """What panels show of rows: scores of a benchmark, or RelAcc over the benchmarks `columns`."""

    suite: Results
    counterpart: Paper
    columns: Sequence[str]

    def value(self, row: Row, panel: str) -> tuple[float | None, Sequence[float] | None]:
        """Ours, with its interval."""
        if panel == RELACC:
            return self.suite.relative(row, self.columns)
        return row["scores"].get(panel), (row.get("scores_ci95") or {}).get(panel)

    def point(self, row: Row, panel: str, across: float) -> Point | None:
        """A row's place in a panel; None where it was not scored."""
        ours, interval = self.value(row, panel)
        if ours is None:
            return None
        theirs = self.counterpart.row(row)
        if theirs is None:
            printed = None
        elif panel == RELACC:
            printed = self.counterpart.relative(theirs, self.suite.scored(row, self.columns))
        else:
            printed = theirs.scores.get(panel)
        return across, ours, interval, printed

    def shown(self, panels: Sequence[str], rows: Sequence[Row]) -> list[str]:
        """The panels in which any of the rows has a place."""
        return [panel for panel in panels if any(self.value(row, panel)[0] is not None for row in rows)]

    def label(self, panel: str) -> str:
        """A panel's title, with its unit."""
        unit = "points" if panel in self.suite.points else "%"
        return f"{RELACC if panel == RELACC else benchmark_name(panel)}, {unit}"


def _counterpart(suite: Results) -> Paper:
    """The paper's figures for plots against tokens: of the table that the suite names, else of the model's own."""
    named = [key for key in suite.results.get("tables") or () if key in (*BY_METHOD, *OTHERS)]
    printed = [known_paper(suite, table) for table in (*named, *BY_METHOD)]
    return next((one for one in printed if one.known), printed[0])


def _against_tokens(suite: Results, panels: Sequence[str], front: bool = False) -> Plot | None:
    """Each panel's value against tokens kept (log scale), a line per method; `front` marks the Pareto front."""
    runs: dict[str, list[Row]] = {}
    for row in compared(suite):
        placed = row["budget"] is not None or row["method"] == "plc"  # regions as they are lie on no line
        if placed and not row.get("infeasible"):
            per_layer = " (per layer)" if row["budget_meaning"] == "layer_average" else ""
            runs.setdefault(suite.name(row) + per_layer, []).append(row)
    rows = [row for group in runs.values() for row in group]
    counterpart = _counterpart(suite)
    view = _View(suite, counterpart, suite.columns(counterpart, [suite.dense, *rows]))
    panels = view.shown(panels, rows)
    if not panels:
        return None
    size = (9.0, max(3.6, 0.19 * (len(runs) + 4))) if front else (3.6, 2.9)
    with drawing(len(panels), "visual tokens kept, mean (log scale)", *size) as (figure, axes):
        hollow = False
        for axis, panel in zip(axes, panels, strict=True):
            dense, interval = view.value(suite.dense, panel)
            if dense is not None:
                axis.axhline(dense, color=INK, linestyle="--", linewidth=1, label="dense")
                if interval and panel != RELACC:
                    axis.axhspan(*interval, color=INK, alpha=0.05, linewidth=0)
            drawn: list[Point] = []
            for place, (name, group) in enumerate(runs.items()):
                found = (view.point(row, panel, _tokens(row, panel)) for row in group)
                points = sorted((point for point in found if point is not None), key=lambda point: point[0])
                hollow |= draw_line(axis, points, place, name)
                drawn += points
            across = {point[0] for point in drawn}
            if front and dense is not None:
                at = suite.dense["tokens_kept_mean"]
                steps = pareto([(x, ours, ours, ours) for x, ours, _, _ in drawn] + [(at, dense, dense, dense)])
                axis.plot(*zip(*steps, strict=True), color=INK, linewidth=8, alpha=0.1, label="Pareto front", zorder=1)
                across.add(at)
            axis.set(xscale="log", title=view.label(panel))
            token_ticks(axis, sorted(across))
        add_legend(figure, axes, hollow)
        return Plot(as_svg(figure), hollow)


def _tokens(row: Row, panel: str) -> float:
    """What a row keeps, of a benchmark's questions where the panel is one's."""
    kept = (row.get("tokens_kept") or {}).get(panel)
    return float(row["tokens_kept_mean"] if kept is None else kept)


def _against_layers(suite: Results) -> Plot | None:
    """RelAcc and each benchmark against K, a line per budget that has several K."""
    rows = [row for row in suite.rows if row["method"] == "ilp" and row["region_source"] == "predicted"]
    rows = [row for row in rows if not row.get("infeasible")]
    swept = [key for key in budgets(rows) if len({row["layer"] for row in rows if budget_key(row) == key}) > 1]
    rows = sorted((row for row in rows if budget_key(row) in swept), key=lambda row: row["layer"])
    counterpart = known_paper(suite, "table8")
    view = _View(suite, counterpart, suite.columns(counterpart, [suite.dense, *rows]))

    def layers(panel: str) -> set[int]:
        return {row["layer"] for row in rows if view.value(row, panel)[0] is not None}

    panels = [panel for panel in (RELACC, *suite.benchmarks) if len(layers(panel)) > 1]
    if not panels:
        return None
    from matplotlib.ticker import MaxNLocator

    with drawing(len(panels), "K, layers that see every token") as (figure, axes):
        hollow = False
        for axis, panel in zip(axes, panels, strict=True):
            dense, _ = view.value(suite.dense, panel)
            if dense is not None:
                axis.axhline(dense, color=INK, linestyle="--", linewidth=1, label="dense")
            for place, key in enumerate(swept):
                found = (view.point(row, panel, row["layer"]) for row in rows if budget_key(row) == key)
                size = f"{100 * key[1]:.3g} % of tokens" if isinstance(key[1], float) else f"{key[1]} tokens"
                label = f"ILP, {size}{' per layer' if key[0] == 'layer_average' else ''}"
                hollow |= draw_line(axis, [point for point in found if point is not None], place, label)
            axis.set(title=view.label(panel))
            axis.xaxis.set_major_locator(MaxNLocator(integer=True))
        add_legend(figure, axes, hollow)
        return Plot(as_svg(figure), hollow)


def _recall(recalls: Mapping[str, Sequence[float]]) -> Plot | None:
    """A histogram per benchmark, in bins of 0.1: recall 1 is in the last one."""
    if not recalls:
        return None
    with drawing(len(recalls), "area recall of the predicted region") as (figure, axes):
        for axis, (benchmark, values) in zip(axes, recalls.items(), strict=False):
            shares = [100 * count / len(values) for count in histogram(values)]
            axis.bar([i / 10 + 0.05 for i in range(10)], shares, width=0.092, color=COLORS[0])
            mean = sum(values) / len(values)
            axis.axvline(mean, color=COLORS[1], linewidth=1.5)
            title = f"{benchmark_name(benchmark)}, {len(values)} questions, mean {mean:.3f}"
            axis.set(title=title, xlim=(0, 1))
            axis.set_ylabel("questions, %")
            axis.grid(False, axis="x")
        return Plot(as_svg(figure))


def histogram(values: Sequence[float]) -> list[int]:
    """Counts in ten bins from 0 to 1, each with its lower end; 1 is in the last."""
    counts = [0] * 10
    for value in values:
        counts[min(9, int(10 * value + 1e-9))] += 1
    return counts
