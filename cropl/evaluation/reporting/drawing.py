"""Panels, lines and legends in the report's style, drawn with matplotlib and written as SVG text."""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from cropl.evaluation.plot import COLORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

MARKERS = "osD^vPX"
INK = "#20242e"
Point = tuple[float, float, Sequence[float] | None, float | None]
"""Across, ours, its interval, and the paper's."""


@dataclass(frozen=True)
class Plot:
    """A plot as SVG text, and whether it has hollow markers, the paper's figures."""

    svg: str
    hollow: bool = False


@contextmanager
def drawing(panels: int, across: str, width: float = 3.6, height: float = 2.9) -> Iterator[tuple[Figure, list[Axes]]]:
    """A figure of so many panels, three in a row, in the report's style; no state of matplotlib is touched.

    Args:
        panels: how many.
        across: what their horizontal axes show.
        width, height: of one, in inches.
    """
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {
        "svg.fonttype": "none", "svg.hashsalt": "cropl", "font.size": 9, "axes.spines.top": False,
        "axes.spines.right": False, "axes.edgecolor": "#8a90a0", "axes.grid": True, "axes.axisbelow": True,
        "grid.color": "#e7e9ee", "axes.labelcolor": "#475467", "xtick.color": "#475467", "ytick.color": "#475467",
        "axes.titlesize": 10, "legend.frameon": False, "font.family": "sans-serif", "text.parse_math": False,
    }  # fmt: skip
    with matplotlib.rc_context(style):
        columns = min(3, panels)
        rows = -(-panels // columns)
        figure = Figure(figsize=(width * columns, height * rows), layout="constrained")
        FigureCanvasAgg(figure)
        axes = list(figure.subplots(rows, columns, squeeze=False).flat)
        for place, axis in enumerate(axes):
            if place >= panels:
                axis.remove()
            elif place + columns >= panels:  # none below
                axis.set_xlabel(across)
        yield figure, axes[:panels]


def as_svg(figure: Figure) -> str:
    """The same text for the same figure."""
    out = io.StringIO()
    figure.savefig(out, format="svg", bbox_inches="tight", pad_inches=0.08, metadata={"Date": None, "Creator": None})
    return out.getvalue()


def draw_line(axis: Axes, points: Sequence[Point], place: int, label: str) -> bool:
    """A line with filled markers and intervals, and hollow ones on a dotted line where the paper has values; if it had.

    Args:
        axis: where it is drawn.
        points: from left to right.
        place: of the line among all, which its colour and marker follow from.
        label: in the legend.
    """
    if not points:
        return False
    color, marker = COLORS[place % len(COLORS)], MARKERS[(place + place // len(COLORS)) % len(MARKERS)]
    across, ours = [point[0] for point in points], [point[1] for point in points]
    axis.plot(across, ours, color=color, marker=marker, markersize=5, linewidth=1.5, label=label, zorder=3)
    for x, _, interval, _ in points:
        if interval and interval[0] is not None:
            axis.plot([x, x], interval, color=color, linewidth=1, alpha=0.5, zorder=2)
    printed = [(x, theirs) for x, _, _, theirs in points if theirs is not None]
    if printed:
        axis.plot(*zip(*printed, strict=True), color=color, marker=marker, markersize=5, markerfacecolor="white",
                  linestyle=":", linewidth=1, zorder=2)  # fmt: skip
    return bool(printed)


def token_ticks(axis: Axes, places: Sequence[float]) -> None:
    """Ticks where runs stand, as far apart as their labels need."""
    from matplotlib.ticker import NullLocator

    kept: list[float] = []
    for place in places:
        if not kept or place / kept[-1] > 1.2:
            kept.append(place)
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticks(kept, [f"{place:.0f}" for place in kept])


def add_legend(figure: Figure, axes: Sequence[Axes], paper: bool) -> None:
    """One legend of all panels, right of them; `paper` explains the hollow markers."""
    found: dict[str, Any] = {}
    for axis in axes:
        for handle, label in zip(*axis.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    if paper:
        from matplotlib.lines import Line2D

        found["the paper's"] = Line2D([], [], color="#8a90a0", marker="o", markerfacecolor="white", linestyle=":")
    figure.legend(list(found.values()), list(found), loc="outside right upper", fontsize=8.5)
