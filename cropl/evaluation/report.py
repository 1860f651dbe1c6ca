"""report.html: one self-contained file with the table, the plot, the kinds and a gallery.

Everything is inline (styles, plot, pictures as data URIs), so the file can be mailed, archived and opened offline. All
text that comes from data or from a model is escaped.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader
from PIL import Image

from cropl.evaluation import gallery, tables
from cropl.evaluation.files import write_atomically
from cropl.evaluation.names import name
from cropl.evaluation.plot import TOKENS, Axis, Series, accuracy_plot
from cropl.evaluation.shapes import usual

Row = Mapping[str, Any]


def write(
    results: Mapping[str, Any],
    predictions: Sequence[gallery.Prediction],
    load_image: Callable[[gallery.Prediction], Image.Image] | None,
    path: str | Path,
    per_group: int = 6,
) -> Path:
    """Write the report of one evaluation.

    Args:
        results: what `results.json` holds (`rows`, `localizer`, `comparisons`).
        predictions: the lines of `predictions.jsonl`.
        load_image: the displayed image of a prediction, for the gallery; None leaves the gallery out.
        path: where the file goes; written beside it first and renamed.
        per_group: pictures per group of the gallery.
    """
    path = Path(path)
    write_atomically(path, render(results, predictions, load_image, per_group))
    return path


def render(
    results: Mapping[str, Any],
    predictions: Sequence[gallery.Prediction],
    load_image: Callable[[gallery.Prediction], Image.Image] | None,
    per_group: int = 6,
) -> str:
    """The report as HTML text."""
    rows: list[Row] = results["rows"]
    dense = next((row for row in rows if row["method"] == "dense" and not row.get("control")), None)
    shown = gallery_row(rows)
    groups = []
    if load_image is not None and dense is not None and shown is not None:
        groups = gallery.cards(predictions, shown["arm"], dense["arm"], load_image, per_group)
    first = rows[0]
    return page(
        "report.html",
        title=f"{short_name(first['model'])} on {first['benchmark']}",
        subtitle=f"{first['n']} questions, recipe {first['recipe']}, seed {first['seed']}, {first['hardware']}, "
        f"{first['dtype']}, {first['attention']} attention",
        n=first["n"],
        figures=_figures(results, dense, shown),
        plot=plot(rows),
        controls_note=_controls_note(rows),
        unit="Scores in the benchmark's own unit" if tables.scored(rows) else "Accuracies in %",
        results=tables.results_html(rows),
        comparisons=tables.comparisons_html(results.get("comparisons", [])),
        kinds=tables.kinds_html(rows),
        groups=groups,
        gallery_note=f"{name(shown, rows)} at {asked_tokens(shown)}, in the order of the data; "
        "nothing is picked by hand. Faded parts of an image are tokens that the later decoder layers never see."
        if shown
        else "",
        provenance=tables.provenance_html(first, results),
    )


def page(template: str, **values: Any) -> str:
    """One of the package's pages, filled; whatever is no markup of ours is escaped."""
    environment = Environment(loader=PackageLoader("cropl.evaluation"), autoescape=True)
    return environment.get_template(template).render(**values)


def gallery_row(rows: Sequence[Row]) -> Row | None:
    """The row whose pictures are shown: ILP at its usual K and smallest budget, with predicted regions if there are."""

    def is_ilp(row: Row) -> bool:
        prunes = row["layer"] is not None and row["layer"] < row["num_layers"]
        return bool(row["method"] == "ilp" and prunes and row["budget"] is not None and not row.get("infeasible"))

    candidates = [row for row in rows if is_ilp(row)]
    candidates = [row for row in candidates if row["layer"] == usual(candidates)]
    predicted = [row for row in candidates if row["region_source"] == "predicted"]
    return min(predicted or candidates, key=lambda row: row["tokens_kept_mean"], default=None)


def asked_tokens(row: Row) -> str:
    """Its budget in words: "64 tokens on average", "22.2 % of an image's tokens on average"."""
    budget = row["budget"]
    return (
        f"{100 * budget:.3g} % of an image's tokens on average"
        if isinstance(budget, float)
        else f"{budget} tokens on average"
    )


def _total_milliseconds(row: Row) -> float | None:
    """Milliseconds of a question with the tower's, and the localizer's where it told the regions or their size."""
    if not row.get("images") or row.get("encode_seconds") is None:
        return None
    seconds = row["seconds"] / seen(row) + row["encode_seconds"] / row["images"]
    if row["region_source"] not in ("gt", "none"):
        if row["region_source"] not in ("predicted", "center", "random") or not row.get("localizer_seconds"):
            return None
        seconds += row["localizer_seconds"] / seen(row)
    return float(1000 * seconds)


def seen(row: Row) -> int:
    """Questions of a row that have an image: what its tokens, costs and seconds are of."""
    return int(row["n"]) - int(row.get("text_only") or 0)


AXES: Mapping[str, tuple[Callable[[Row], float | None], Axis]] = {
    "tokens": (lambda row: float(row["tokens_kept_mean"]), TOKENS),
    "flops": (
        lambda row: float(row["prefill_flops"]),
        Axis("prefill FLOPs of the language model, mean (log scale)", lambda value: tables.amount(value, "FLOP")),
    ),
    "total flops": (
        lambda row: row.get("prefill_flops_with_localizer"),
        Axis(
            "prefill FLOPs with vision tower and localizer, mean (log scale)",
            lambda value: tables.amount(value, "FLOP"),
        ),
    ),
    "seconds": (
        lambda row: 1000 * float(row["seconds"]) / seen(row),
        Axis("milliseconds per question in the language model (log scale)", "{:.1f}".format, " ms"),
    ),
    "total seconds": (
        _total_milliseconds,
        Axis("milliseconds per question with vision tower and localizer (log scale)", "{:.1f}".format, " ms"),
    ),
}
"""What accuracy is plotted against: how a row tells it (None where it does not), and how it is written."""


def plot(rows: Sequence[Row], against: str = "tokens", frontier: bool = False) -> str:
    """The plot of the rows that prune, accuracy against one of `AXES`; SVG text, empty where none does."""
    cost, axis = AXES[against]
    dense = None
    series: dict[str, Series] = {}
    for row in rows:
        unplaced = row["budget"] is None and row["method"] not in ("dense", "plc")
        if row.get("control") or row.get("infeasible") or unplaced:
            continue  # regions as they are have no budget, and so no line to lie on
        if (at := cost(row)) is None or row["accuracy"] is None:
            continue  # what it costs is not known, or its answers are scored by a server
        point = (at, row["accuracy"], *row["accuracy_ci95"])
        if row["method"] == "dense":
            dense = point
        elif row["layer"] is None or row["layer"] < row["num_layers"]:  # at K = L nothing is pruned
            called = name(row, rows)
            series.setdefault(called, Series(called)).points.append(point)
    return accuracy_plot(list(series.values()), dense, axis, frontier) if series else ""


def short_name(model: str) -> str:
    """A model's name for a heading: a folder by its last part, a hub name as it is."""
    return Path(model).name if model.startswith((".", "/", "~")) else model


def _figures(results: Mapping[str, Any], dense: Row | None, shown: Row | None) -> list[dict[str, str]]:
    figures = []
    if dense is not None and dense["accuracy"] is not None:
        label = f"dense accuracy, {dense['tokens_kept_mean']:.0f} tokens"
        figures.append({"value": f"{tables.percent(dense['accuracy'])} %", "label": label})
    if shown is not None and shown["accuracy"] is not None:
        label = f"{name(shown, results['rows'])}, {shown['tokens_kept_mean']:.0f} tokens"
        figures.append({"value": f"{tables.percent(shown['accuracy'])} %", "label": label})
        if shown["rel_acc"] is not None:
            figures.append({"value": f"{shown['rel_acc']:.1f} %", "label": "RelAcc of that"})
    if dense is not None and shown is not None:
        saved = 1 - shown["prefill_flops"] / dense["prefill_flops"]
        figures.append({"value": f"{100 * saved:.0f} %", "label": "fewer prefill FLOPs in the language model"})
        saved = 1 - shown["kv_bytes"] / dense["kv_bytes"]
        figures.append({"value": f"{100 * saved:.0f} %", "label": "smaller KV cache"})
    localizer = results.get("localizer")
    if localizer:
        label = f"mean area recall of the localizer, {localizer['n']} questions"
        figures.append({"value": f"{localizer['mean_recall']:.3f}", "label": label})
    return figures


def _controls_note(rows: Sequence[Row]) -> str:
    """How many seeds the random controls are means over; those that differ from most are named."""
    random = [row for row in rows if row.get("seeds") and not row.get("infeasible")]
    if not random:
        return ""
    counts = [len(row["seeds"]) for row in random]
    most = max(counts, key=counts.count)
    usual = f"Random controls are means over {most} seeds" if most > 1 else "Random controls are runs of one seed"
    others = {name(row, rows): n for row, n in zip(random, counts, strict=True) if n != most}
    named = "; ".join(f"{each}: {n} seed{'s' if n > 1 else ''}" for each, n in others.items())
    return f"{usual} ({named})." if named else f"{usual}."
