"""The report of a suite: its rows, tables as Markdown, LaTeX and CSV, plots, and one self-contained HTML page."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cropl.evaluation import gallery, report
from cropl.evaluation.files import write_atomically, write_json
from cropl.evaluation.markup import cell
from cropl.evaluation.names import benchmark_name
from cropl.evaluation.reporting import formats, stored
from cropl.evaluation.reporting.drawing import Plot
from cropl.evaluation.reporting.figures import figures
from cropl.evaluation.reporting.results import Results, Row
from cropl.evaluation.reporting.suite_tables import missing, tables
from cropl.evaluation.reporting.table import Table
from cropl.evaluation.shapes import comparisons
from cropl.evaluation.tables import comparisons_html, provenance_html

HOW = (
    'Scores in the benchmarks\' own units (%, MME in points), RelAcc in %. "kept" is the mean number of visual tokens '
    "behind the pruning layer."
)
BESIDE = "Figures of the paper stand below ours; differences are ours less the paper's, of unrounded figures."
TIPS = "95 % bootstrap intervals show when the pointer rests on a score."
PLOTS = {
    "scores": (
        "Scores against tokens",
        "Bars are 95 % intervals.",
    ),
    "rel_acc": ("RelAcc against tokens", "The grey band is the Pareto front: what no run with fewer tokens reaches."),
    "layers": ("The pruning layer K", "Scores of ILP with predicted regions before every K that was run."),
    "recall": ("Area recall of the localizer", "Of questions with boxes, in bins of 0.1; recall 1 is in the last."),
}
HOLLOW = "Hollow markers are the paper's own figures."
PER_GROUP = 2
"""Pictures of each group and benchmark in the gallery."""


def write(results: Mapping[str, Any], folder: Path, name: str, out: Path) -> str:
    """Write NAME.json, .md, .tex, .csv, .html and the plots NAME_PLOT.svg of a suite; what was made, in a few words.

    Args:
        results: what `results.json` of the suite holds, checked.
        folder: the suite's, with a folder of answers for each benchmark; those that are not there are not shown.
        name: of the files.
        out: where they go.
    """
    suite = Results(results)
    found = tables(suite)
    shown = report.gallery_row(suite.rows)
    answers = {
        benchmark: stored.read(path, shown["arm"] if shown else None, suite.dense["arm"])
        for benchmark in suite.benchmarks
        if (path := folder / benchmark / "predictions.jsonl").is_file()
    }
    plots = figures(suite, {benchmark: one.recalls for benchmark, one in answers.items()})
    for key, plot in plots.items():
        write_atomically(out / f"{name}_{key}.svg", plot.svg)
    write_json(out / f"{name}.json", results)
    write_atomically(out / f"{name}.md", markdown(suite, found, name, list(plots)))
    write_atomically(out / f"{name}.tex", formats.latex(found))
    write_atomically(out / f"{name}.csv", formats.comma_separated(found))
    write_atomically(out / f"{name}.html", html(suite, found, name, plots, answers, shown))
    left = f"; the rows cannot fill {', '.join(missing(suite))}" if missing(suite) else ""
    return f"{len(results['rows'])} rows, {len(found)} tables, {len(plots)} plots{left}"


def _facts(suite: Results) -> str:
    first = next(row for row in suite.results["rows"] if not row.get("infeasible"))
    counts: dict[str, int] = {row["benchmark"]: row["n"] for row in suite.results["rows"]}
    versions = ", ".join(f"{package} {version}" for package, version in (first.get("versions") or {}).items())
    told = [
        f"cropl evaluate -c {suite.results.get('recipe')}",
        f"model {first['model']}",
        "questions: " + ", ".join(f"{benchmark_name(one)} {counts[one]}" for one in suite.benchmarks if one in counts),
        f"{first.get('hardware')}, {first.get('dtype')}, {first.get('attention')} attention",
        f"{versions}, commit {first.get('commit')}",
    ]
    return "; ".join(told) + "."


def _how(found: Sequence[Table]) -> str:
    return f"{HOW} {BESIDE}" if any(table.compared for table in found) else HOW


def markdown(suite: Results, found: Sequence[Table], name: str, plots: Sequence[str]) -> str:
    """The page as Markdown; its plots are files beside it."""
    about = "Intervals, FLOPs, bytes and seconds of every row are in the CSV and JSON files beside this page."
    parts = [f"# {cell(name)}", "", cell(_facts(suite)), "", f"{_how(found)} {about}", ""]
    parts += [f"![{PLOTS[plot][0]}]({name}_{plot}.svg)\n" for plot in plots]
    parts += [formats.markdown(table) for table in found]
    if told := _missing(suite):
        parts += [cell(told), ""]
    for benchmark, pairs in _pairs(suite).items():
        parts.append(comparisons(pairs, f"Paired comparisons on {benchmark_name(benchmark)}").markdown())
    return "\n".join(parts)


def html(
    suite: Results,
    found: Sequence[Table],
    name: str,
    plots: Mapping[str, Plot],
    answers: Mapping[str, stored.Stored],
    shown: Row | None,
) -> str:
    """The page as one HTML file, plots and pictures inside."""
    pictures = _pictures(suite, answers, shown) if shown is not None else []
    first = next(row for row in suite.results["rows"] if not row.get("infeasible"))
    note = (
        f"{suite.name(shown)} at {report.asked_tokens(shown)}, in the order of the data; nothing is picked by hand. "
        "Faded parts of an image are tokens that the later decoder layers never see."
        if shown is not None
        else ""
    )
    return report.page(
        "suite.html",
        title=f"{report.short_name(first['model'])}: {name}",
        subtitle=_facts(suite),
        how=f"{_how(found)} {TIPS}",
        figures=_figures(suite, found, shown),
        tables=[{"title": table.title, "html": formats.html(table)} for table in found],
        missing=_missing(suite),
        plots=[
            {
                "title": PLOTS[key][0],
                "note": " ".join([PLOTS[key][1], *([HOLLOW] if plot.hollow else [])]),
                "data": base64.b64encode(plot.svg.encode()).decode(),
            }
            for key, plot in plots.items()
        ],
        comparisons=[
            {"title": benchmark_name(benchmark), "html": comparisons_html(pairs)}
            for benchmark, pairs in _pairs(suite).items()
        ],
        pictures=pictures,
        gallery_note=note,
        provenance=provenance_html(first, {"localizer": suite.results.get("localizer")}),
    )


def _missing(suite: Results) -> str:
    left = missing(suite)
    return f"The rows of this suite cannot fill {', '.join(left)} of the paper." if left else ""


def _pairs(suite: Results) -> dict[str, list[Mapping[str, Any]]]:
    pairs: dict[str, list[Mapping[str, Any]]] = {}
    for one in suite.results.get("comparisons") or []:
        pairs.setdefault(one["benchmark"], []).append(one)
    return pairs


def _relative(made: Sequence[Table], row: Row) -> float | None:
    """RelAcc of a row as the first table with it has it; the suite's where none has."""
    for table in made:
        for line in table.lines():
            if line.arm == row["arm"] and "RelAcc" in table.columns:
                return line.cells[table.columns.index("RelAcc")].ours
    relative: float | None = row["rel_acc"]
    return relative


def _figures(suite: Results, made: Sequence[Table], shown: Row | None) -> list[dict[str, str]]:
    found = []
    if shown is not None:
        label = f"{suite.name(shown)}, {shown['tokens_kept_mean']:.0f} tokens on average"
        relative = _relative(made, shown)
        if relative is not None:
            found.append({"value": f"{relative:.1f} %", "label": f"RelAcc of {label}"})
        for key, what in (
            ("prefill_flops", "fewer prefill FLOPs in the language model"),
            ("kv_bytes", "smaller KV cache"),
        ):
            found.append({"value": f"{100 * (1 - shown[key] / suite.dense[key]):.0f} %", "label": what})
    for benchmark, one in (suite.results.get("localizer") or {}).items():
        if one:
            label = f"mean area recall of the localizer, {benchmark_name(benchmark)}, {one['n']} questions"
            found.append({"value": f"{one['mean_recall']:.3f}", "label": label})
    return found[:6]


def _pictures(suite: Results, answers: Mapping[str, stored.Stored], shown: Row) -> list[dict[str, Any]]:
    found = []
    for benchmark, one in answers.items():
        groups = gallery.cards(one.candidates, shown["arm"], suite.dense["arm"], stored.picture, PER_GROUP)
        told = [f"{one.n} questions"]
        if one.without_picture:
            told.append(f"the pictures of {one.without_picture} are not here")
        if one.unjudged:
            told.append(
                f"the answers to {one.unjudged} are not scored here, so that none can be shown as right or wrong"
            )
        found.append({"title": benchmark_name(benchmark), "note": "; ".join(told) + ".", "groups": groups})
    return found
