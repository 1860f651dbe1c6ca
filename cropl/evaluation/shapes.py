"""Result rows in the shapes of the paper's tables: methods by budget, the pruning layer, region sources, prune or ILP.

The paper's columns are benchmarks. A study has one, so its kinds of questions take their place; RelAcc stays what it is
everywhere, of all questions of the benchmark.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from cropl.evaluation.markup import cell, code
from cropl.evaluation.names import called, is_full, name, variant
from cropl.evaluation.tables import budget, interval, percent, relacc_note, relative, score, scored

Row = Mapping[str, Any]


@dataclass
class Shape:
    """A table in groups of lines.

    Attributes:
        title: which of the paper's tables has this shape, and what it shows.
        heads: of the columns.
        groups: (label, lines) each; a line has one cell per head.
        caption: what its columns mean, where that needs saying.
    """

    title: str
    heads: list[str]
    groups: list[tuple[str, list[list[str]]]] = field(default_factory=list)
    caption: str = ""

    def markdown(self) -> str:
        """As a GitHub table; a group's label takes a line of its own."""
        lines = [f"### {cell(self.title)}", "", _line(self.heads), _line(["---"] + ["---:"] * (len(self.heads) - 1))]
        for label, group in self.groups:
            lines.append(f"| *{cell(label)}* |{'  |' * (len(self.heads) - 1)}")
            lines += [_line(cells) for cells in group]
        return "\n".join([*lines, "", *([self.caption, ""] if self.caption else [])])


def _line(cells: Iterable[str]) -> str:
    return f"| {' | '.join(map(cell, cells))} |"


def shapes(rows: Sequence[Row]) -> list[Shape]:
    """Every shape that the rows of one study can fill."""
    found = [by_method(rows), by_layer(rows), by_source(rows), by_strategy(rows)]
    return [shape for shape in found if len(shape.groups) > 1]


def page(results: Mapping[str, Any], title: str, plots: Sequence[str] = ()) -> str:
    """A Markdown page of one study: how it was run, every shape, its paired comparisons, and its plots.

    Args:
        results: what `results.json` holds.
        title: also the first part of the plots' file names, `TITLE_PLOT.svg`.
        plots: what accuracy was plotted against.
    """
    first = results["rows"][0]
    versions = ", ".join(f"{package} {version}" for package, version in (first.get("versions") or {}).items())
    facts = [
        code(f"cropl evaluate -c {first.get('recipe')}"),
        f"{first['n']} questions of {first['benchmark']}",
        f"model {first['model']}",
        f"seed {first['seed']}",
        f"{first.get('hardware')}, {first.get('threads')} threads",
        f"{first.get('dtype')}, {first.get('attention')} attention",
        f"{versions}, commit {first.get('commit')}",
    ]
    note = (
        'Accuracies in %. Tokens are those that the last decoder layer sees ("kept"), and the mean over all layers. '
        "95 % intervals, FLOPs, bytes and seconds of every row are in the JSON file beside this page."
    )
    command, *others = facts
    told = "; ".join([command, *map(cell, others)])
    parts = [f"# {cell(title)}", "", f"{told}.", "", note, ""]
    parts += [f"![accuracy against {plot}]({title}_{plot.replace(' ', '_')}.svg)\n" for plot in plots]
    parts += [shape.markdown() for shape in shapes(results["rows"])]
    if results.get("comparisons"):
        parts.append(comparisons(results["comparisons"]).markdown())
    return "\n".join(parts)


def comparisons(found: Sequence[Mapping[str, Any]], title: str = "Paired comparisons") -> Shape:
    """Paired differences on the same questions."""
    lines = [
        [
            f"{one['a']} - {one['b']}",
            "" if one["budget"] is None else str(one["budget"]),
            f"{100 * one['difference']:+.1f}",
            interval(one["ci95"], True),
        ]
        for one in found
    ]
    heads = ["difference, points of accuracy", "budget", "mean", "95 %"]
    return Shape(title, heads, [("on the same questions", lines)])


def by_method(rows: Sequence[Row]) -> Shape:
    """Tables 2, 3 and 7: every method at every budget, with predicted regions where it takes any."""
    shape = _with_dense(rows, "Methods by budget (the shape of the paper's Tables 2, 3 and 7)")
    chosen = [row for row in pruned(rows) if row["region_source"] in ("predicted", "none")]
    chosen = [
        row for row in chosen if row["method"] != "ilp" or row["layer"] == usual(chosen)
    ]  # the others: `by_layer`
    for key in budgets(chosen):
        group = [row for row in chosen if budget_key(row) == key]
        shape.groups.append((asked(group[0]), [_cells(row, rows) for row in group]))
    unbudgeted = [row for row in chosen if row["budget"] is None]
    if unbudgeted:
        shape.groups.append(("no budget", [_cells(row, rows) for row in unbudgeted]))
    return shape


def by_layer(rows: Sequence[Row]) -> Shape:
    """Table 8: ILP with predicted regions before every K, down to `prune`."""
    shape = _with_dense(rows, "The pruning layer K (the shape of the paper's Table 8)")
    ilp = [row for row in rows if row["method"] in ("ilp", "prune") and row["region_source"] == "predicted"]
    for key in budgets(ilp):
        group = [row for row in ilp if budget_key(row) == key]
        layers = {row["layer"] for row in group if row["method"] == "ilp"}
        if len(layers) > 1:
            group.sort(key=lambda row: (row["method"] == "prune", -(row["layer"] or 0)))
            lines = [
                [_joined(f"{called(row)} (K = {row['layer']})", variant(row, rows)), *_cells(row, rows)[1:]]
                if row["method"] == "ilp"
                else [called(row), *_cells(row, rows)[1:]]
                for row in group
            ]
            shape.groups.append((asked(group[0]), lines))
    return shape


def by_source(rows: Sequence[Row]) -> Shape:
    """Table 10: ILP with true, predicted, centre and random regions; accuracy over all questions."""
    shape = Shape("Region sources (the shape of the paper's Table 10)", ["budget", "dense"])
    sources = [s for s in ("gt", "predicted", "center", "random") if any(row["region_source"] == s for row in rows)]
    shape.heads += [{"gt": "GT", "predicted": "Pred", "center": "Center", "random": "Random"}[s] for s in sources]
    dense = dense_of(rows)
    ilp = [row for row in pruned(rows) if row["method"] == "ilp" and row["budget"] is not None]
    runs = {
        row["arm"]: (row["layer"], _joined(f"{called(row)}, K = {row['layer']}", variant(row, rows))) for row in ilp
    }
    for run in sorted(set(runs.values())):
        lines = []
        for key in budgets(ilp):
            found = {row["region_source"]: row for row in ilp if budget_key(row) == key and runs[row["arm"]] == run}
            if dense is not None and len(found) > 1:
                label = budget(next(iter(found.values())))
                cells = [percent(found[s]["accuracy"]) if s in found else "-" for s in sources]
                lines.append([label, percent(dense["accuracy"]), *cells])
        if lines:
            shape.groups.append((run[1], lines))
    # One group is enough here: its columns are what is compared.
    return Shape(shape.title, shape.heads, [("accuracy, %", []), *shape.groups]) if shape.groups else shape


def by_strategy(rows: Sequence[Row]) -> Shape:
    """Table 5: the region alone (`prune`) against ILP, with predicted regions."""
    shape = _with_dense(rows, "The region alone, or ILP (the shape of the paper's Table 5)")
    both = [row for row in pruned(rows) if row["method"] in ("ilp", "prune") and row["region_source"] == "predicted"]
    layer = usual(both)
    for key in budgets(both):
        group = [
            row for row in both if budget_key(row) == key and row["layer"] == (0 if row["method"] == "prune" else layer)
        ]
        if {row["method"] for row in group} == {"ilp", "prune"}:
            group.sort(key=lambda row: row["method"] == "ilp")
            shape.groups.append((asked(group[0]), [_cells(row, rows) for row in group]))
    return shape


def _joined(*parts: str) -> str:
    return ", ".join(part for part in parts if part)


def _with_dense(rows: Sequence[Row], title: str) -> Shape:
    dense = dense_of(rows)
    kinds = [] if dense is None else sorted(dense["accuracy_by_kind"] or {})
    heads = ["method", *kinds, "all", *_own(rows, "score"), "RelAcc", "kept", "per layer"]
    if dense is None:
        return Shape(title, heads)
    label = f"upper bound, {dense['tokens_kept_mean']:.0f} tokens"
    return Shape(title, heads, [(label, [_cells(dense, rows)])], relacc_note(rows))


def _cells(row: Row, rows: Sequence[Row]) -> list[str]:
    dense = dense_of(rows)
    assert dense is not None
    kinds = sorted(dense["accuracy_by_kind"] or {})
    if row.get("infeasible"):
        return [name(row, rows), *["-"] * len(kinds), "infeasible", *_own(rows, "-"), "-", "-", "-"]
    scores = {kind: score["accuracy"] for kind, score in (row["accuracy_by_kind"] or {}).items()}
    tokens = [f"{row['tokens_kept_mean']:.1f}", f"{row['layer_average_tokens']:.0f}"]
    by_kind = [percent(scores.get(kind)) for kind in kinds]
    own = _own(rows, score(row)[0])
    return [name(row, rows), *by_kind, percent(row["accuracy"]), *own, relative(row), *tokens]


def _own(rows: Sequence[Row], text: str) -> list[str]:
    """A cell of the column of the benchmark's own score; none where the rows have no such scores."""
    return [text] if scored(rows) else []


def dense_of(rows: Sequence[Row]) -> Row | None:
    """The dense run, which all others are compared with."""
    return next((row for row in rows if row["method"] == "dense" and not row.get("control")), None)


def pruned(rows: Sequence[Row]) -> list[Row]:
    """Rows that drop something, infeasible ones too."""
    return [row for row in rows if row["method"] != "dense" and not row.get("control") and not is_full(row)]


def usual(rows: Sequence[Row]) -> int | None:
    """K of ILP at most budgets, the smallest of several: a sweep over K stands at one budget."""
    layers = [row["layer"] for row in rows if row["method"] == "ilp"]
    return max(sorted(set(layers)), key=layers.count, default=None)


def asked(row: Row) -> str:
    """The budget as a group's label."""
    value = row["budget"]
    size = f"{100 * value:.3g} % of an image's tokens" if isinstance(value, float) else f"{value} tokens"
    return f"on average {size}{' per layer' if row['budget_meaning'] == 'layer_average' else ''}"


def budget_key(row: Row) -> tuple[str, int | float]:
    """What rows of one group share."""
    return row["budget_meaning"], row["budget"]


def budgets(rows: Iterable[Row]) -> list[tuple[str, int | float]]:
    """The distinct budgets: post_prune before layer_average, the largest first."""
    keys = {budget_key(row) for row in rows if row["budget"] is not None}
    return sorted(keys, key=lambda key: (key[0] != "post_prune", -key[1]))
