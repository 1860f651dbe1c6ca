"""The rows of one shape as a picture: measured against ideal speed-up, and time against FLOPs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cropl.bench.prune.table import label

Row = dict[str, Any]

MARKERS = ("o", "s", "D", "^", "v", "P", "X", "*", "<", ">")
MOST_NAMES, COLUMNS = 8, 6
"""Names that a panel has room for, and columns of those below both."""
INK, GRID = "#20242e", "#e7e9ee"


def draw(rows: Sequence[Row], path: str | Path, colors: Sequence[str], title: str) -> Path:
    """A PNG with two panels: speed-ups with their intervals, and shares of time with the growth series.

    Args:
        rows: of one shape.
        path: of the PNG.
        colors: of the methods, in turn.
        title: what was measured, and on what.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    rows = [row for row in rows if "failed" not in row]
    figure = Figure(figsize=(11, 4.8), layout="constrained")
    FigureCanvasAgg(figure)
    left, right = figure.subplots(1, 2)
    styles = _styles(rows, colors)
    _against_ideal(left, rows, styles)
    _against_flops(right, rows, styles)
    for axes in (left, right):
        axes.grid(color=GRID)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
    names = len(left.get_legend_handles_labels()[1])
    if names <= MOST_NAMES:
        left.legend(loc="upper left", frameon=False, fontsize=9)
    else:
        figure.set_figheight(4.8 + 0.2 * -(-names // COLUMNS))
        figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=COLUMNS, fontsize=8)
    figure.suptitle(title, x=0.01, ha="left", fontsize=10)
    figure.savefig(path, dpi=160)
    return Path(path)


def _styles(rows: Sequence[Row], colors: Sequence[str]) -> dict[tuple[str, int], dict[str, Any]]:
    """Colour by method, hollow markers for batches; the ragged series is a method of its own."""
    names = list(dict.fromkeys(_label(row) for row in rows))
    batches = sorted({row["batch"] for row in rows})
    found: dict[tuple[str, int], dict[str, Any]] = {}
    for i, name in enumerate(names):
        for batch in batches:
            color = colors[i % len(colors)]
            face = color if batch == batches[0] or name.startswith("ragged") else "white"
            found[name, batch] = {
                "color": color, "marker": MARKERS[(i + i // len(colors)) % len(MARKERS)], "markerfacecolor": face,
                "markeredgecolor": "white" if face == color else color, "markersize": 8 if face == color else 6,
            }  # fmt: skip
    return found


def _label(row: Row) -> str:
    return "ragged ilp" if row["series"] == "ragged" else label(row)


def _against_ideal(axes: Any, rows: Sequence[Row], styles: dict[tuple[str, int], dict[str, Any]]) -> None:
    shown: set[tuple[str, int]] = set()
    most = 1.0
    for row in rows:
        if row["series"] == "growth":
            continue
        llm, key = row["prefill"]["speedup"]["llm"], (_label(row), row["batch"])
        low, high = llm["interval"]
        error = [[max(0.0, llm["measured"] - low)], [max(0.0, high - llm["measured"])]]
        label = None if key in shown else f"{key[0]}, batch {key[1]}"
        shown.add(key)
        axes.errorbar(llm["ideal"], llm["measured"], error, capsize=3, linestyle="none", label=label, **styles[key])
        most = max(most, llm["ideal"], high)
    end = 1.06 * most
    axes.plot([1, end], [1, end], color=INK, linewidth=1, zorder=1)
    axes.plot([1, end], [0.9, 0.9 * end], color=INK, linewidth=1, linestyle=(0, (5, 4)), zorder=1)
    for share, name in ((1.0, "limit"), (0.9, "90 %")):
        axes.annotate(name, (end, share * end), (4, -3), textcoords="offset points", fontsize=9, color=INK)
    axes.set_xlabel("ideal speed-up of the prefill: ratio of FLOPs")
    axes.set_ylabel("measured speed-up, language model alone")
    axes.set_xlim(1, 1.02 * end)
    axes.set_ylim(0.9, 1.02 * end)


def _against_flops(axes: Any, rows: Sequence[Row], styles: dict[tuple[str, int], dict[str, Any]]) -> None:
    """Both as shares of the dense run's, so that other shapes and batches lie on the same line."""
    axes.fill_between([0, 1], [0, 0.9], [0, 1.1], color=GRID, zorder=0, label="within 10 % of the FLOPs")
    axes.plot([0, 1], [0, 1], color=INK, linewidth=1, zorder=1)
    axes.plot(1, 1, color=INK, marker="o", markersize=9, linestyle="none", zorder=3, label="dense")
    for row in rows:
        llm = row["prefill"]["speedup"]["llm"]
        key = _label(row), row["batch"]
        axes.plot(1 / llm["ideal"], 1 / llm["measured"], linestyle="none", zorder=2, **styles[key])
    axes.set_xlabel("FLOPs of the prefill, as a share of the dense one's")
    axes.set_ylabel("time of the prefill, as a share of the dense one's")
    axes.set_xlim(0, 1.05)
    axes.set_ylim(0, 1.12)
    axes.legend(loc="upper left", frameon=False, fontsize=9)
