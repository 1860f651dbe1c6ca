"""What a calibration found: a table for the terminal, and coverage against the mean size of a region as a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from cropl.evaluation.plot import COLORS

NAMES = {
    "greedy": "greedy (the paper)",
    "most_probable": "most probable rectangle",
    "coverage": "coverage of each side",
    "expected_recall": "expected recall",
}


def guarantee(found: Mapping[str, Any]) -> str:
    """What is promised, and what is not."""
    goal = found["goal"]
    return (
        f"Over draws of {found['n']} calibration questions and a new one that is exchangeable with them, regions read "
        f"at the calibrated level hold at least {_percent(goal['recall'])} of the true region in at least "
        f"{_percent(goal['share'])} of all cases; one calibration on as many questions lies about "
        f"{100 * found['coverage_sd']:.1f} points around that. The promise is marginal: not for each kind of question, "
        "and not for pictures of another origin."
    )


def rounded(readout: str) -> str:
    """A read-out as tables show it: its name in words, and the level to four digits, or as many as tell it from 1."""
    name, _, level = readout.partition(":")
    if not level:
        return NAMES[name]
    digits = next((n for n in range(4, 16) if float(f"{float(level):.{n}g}") < 1), 4)
    return f"{NAMES[name]} {float(level):.{digits}g}"


def _percent(share: float) -> str:
    return f"{100 * share:.4g} %"


def table(runs: Sequence[Mapping[str, Any]]) -> Table:
    """All read-outs on the fresh questions, for each resolution."""
    goal, several = runs[0]["goal"], len(runs) > 1
    made = Table(
        title=f"{runs[0]['fresh']} fresh questions", title_justify="left", header_style="bold", title_style="bold"
    )
    if several:
        made.add_column("pixels", justify="right", no_wrap=True)
    made.add_column("read-out", no_wrap=True)
    heads = (f"recall >= {goal['recall']:g}", "95 %", "mean recall", "> 0.5", "> 0.7", "> 0.9")
    for head in (*heads, "precision", "image", "tokens"):
        made.add_column(head, justify="right", no_wrap=True)
    for run in runs:
        for i, row in enumerate(run["rows"]):
            scores, fitted = row["scores"], row["readout"] == run["readout"]
            cells = [rounded(row["readout"]) + (", calibrated" if fitted else "")]
            cells += [f"{100 * row['covered']:.1f} %", f"{100 * row['low']:.1f}..{100 * row['high']:.1f}"]
            cells += [f"{scores['mean_recall']:.3f}"]
            cells += [f"{100 * scores[f'recall_gt_{above}']:.1f}" for above in ("0.5", "0.7", "0.9")]
            cells += [
                f"{scores['mean_precision']:.3f}",
                f"{100 * scores['region_share']:.1f} %",
                f"{row['tokens']:.0f}",
            ]
            pixels = [f"{run['max_pixels']:,}" if i == 0 else ""] if several else []
            made.add_row(*pixels, *cells, style="bold" if fitted else None)
        made.add_section()
    return made


def by_kind(run: Mapping[str, Any]) -> str:
    """How often the calibrated read-out reaches the goal for each kind of question; "" without kinds."""
    row = next(row for row in run["rows"] if row["readout"] == run["readout"])
    return ", ".join(f"{kind} {100 * share:.0f} %" for kind, share in row["kinds"].items())


def draw(runs: Sequence[Mapping[str, Any]], path: str | Path) -> Path:
    """Share of questions that reach the goal against the mean share of the image, as a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    goal, several = runs[0]["goal"], len(runs) > 1
    figure = Figure(figsize=(7.6, 4.6), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.axhline(100 * goal["share"], color="#20242e", linewidth=1, linestyle=(0, (6, 4)))
    axes.annotate(
        f"asked for: {_percent(goal['share'])}", (0, 100 * goal["share"]), (6, 4), xycoords=("axes fraction", "data"),
        textcoords="offset points", fontsize=9, color="#20242e",
    )  # fmt: skip
    truth = 100 * runs[0]["true_share"]
    axes.axvline(truth, color="#20242e", linewidth=1, linestyle=(0, (1, 3)))
    axes.annotate(
        f"true regions: {truth:.3g} %", (truth, 0), (4, 6), xycoords=("data", "axes fraction"),
        textcoords="offset points", fontsize=9, color="#20242e",
    )  # fmt: skip
    for i, run in enumerate(runs):
        names = ("expected_recall",) if several else ("expected_recall", "coverage")
        for j, name in enumerate(names):
            color = COLORS[i + j]
            label = f"at most {run['max_pixels']:,} pixels" if several else f"{NAMES[name]}, any level"
            points = sorted((row["scores"]["region_share"], row["covered"]) for row in run["curves"][name])
            axes.plot(*zip(*((100 * x, 100 * y) for x, y in points)), color=color, marker=".", label=label, zorder=2)
        for row in run["rows"]:
            name, fitted = row["readout"].partition(":")[0], row["readout"] == run["readout"]
            if not fitted and (several or name not in ("greedy", "most_probable")):
                continue
            color = COLORS[i] if fitted else COLORS[2 + ("greedy", "most_probable").index(name)]
            x, y = 100 * row["scores"]["region_share"], 100 * row["covered"]
            marker, size = ("D", 8) if fitted else {"greedy": ("s", 9), "most_probable": ("^", 6)}[name]
            error = [[y - 100 * row["low"]], [100 * row["high"] - y]]
            label = f"calibrated, {rounded(row['readout'])}" if fitted else NAMES[name]
            axes.errorbar(
                x, y, error, color=color, marker=marker, markersize=size, capsize=3,
                markeredgecolor="white", linestyle="none", label=None if several else label, zorder=3,
            )  # fmt: skip
    axes.set_xlabel("mean share of the image that a region takes, %")
    axes.set_ylabel(f"questions with recall >= {goal['recall']:g}, %")
    axes.set_title(f"{runs[0]['fresh']} fresh questions, 95 % intervals", loc="left", fontsize=10)
    axes.grid(color="#e7e9ee")
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", frameon=False, fontsize=9)
    figure.savefig(path, dpi=160)
    return Path(path)
