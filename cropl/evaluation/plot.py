"""Accuracy against what it costs as inline SVG: one line per method and region source, with error bars; no library.

A report has to open anywhere, offline, and stay readable when it is printed; some sixty lines of SVG do that.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from html import escape

WIDTH, HEIGHT = 860, 420
LEFT, RIGHT, TOP, BOTTOM = 62, 218, 18, 52
# Okabe and Ito's palette: told apart with every kind of colour vision, and on paper.
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#7a5195", "#8c564b")
MARKERS = ("circle", "square", "diamond", "triangle")
FRONT = 'stroke="#20242e" stroke-width="5" stroke-linejoin="round" opacity="0.18"'


@dataclass
class Series:
    """One line: `points` are (cost, accuracy, low, high), accuracies in 0..1."""

    name: str
    points: list[tuple[float, float, float, float]] = field(default_factory=list)


@dataclass(frozen=True)
class Axis:
    """What accuracy is plotted against: its label, and how a value is written."""

    label: str
    text: Callable[[float], str] = "{:.0f}".format
    unit: str = ""


TOKENS = Axis("visual tokens kept after the pruning layer, mean (log scale)", unit=" tokens")


def accuracy_plot(
    series: Sequence[Series],
    dense: tuple[float, float, float, float] | None = None,
    axis: Axis = TOKENS,
    frontier: bool = False,
) -> str:
    """SVG text.

    Args:
        series: one line each.
        dense: (cost, accuracy, low, high) of the unpruned model: a dashed line with its interval as a band.
        axis: what costs are.
        frontier: mark the Pareto front of all points, the dense one too.
    """
    points = [point for one in series for point in one.points] + ([dense] if dense else [])
    if not points:
        return ""
    low_x, high_x = min(p[0] for p in points) / 1.2, max(p[0] for p in points) * 1.06
    low_y = max(0.0, math.floor((min(p[2] for p in points) - 0.01) * 20) / 20)
    high_y = min(1.0, math.ceil((max(p[3] for p in points) + 0.01) * 20) / 20)

    def x(tokens: float) -> float:
        return LEFT + (WIDTH - LEFT - RIGHT) * math.log(tokens / low_x) / math.log(high_x / low_x)

    def y(accuracy: float) -> float:
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * (accuracy - low_y) / (high_y - low_y)

    longer = max(0, 9 * (max(len(one.name) for one in series) - 21)) if series else 0  # names beyond the legend's room
    parts = [
        f'<svg class="plot" viewBox="0 0 {WIDTH + longer} {HEIGHT}" role="img" '
        f'aria-label="Accuracy against {escape(axis.label)}" xmlns="http://www.w3.org/2000/svg">'
    ]
    step = 0.05 if high_y - low_y <= 0.45 else 0.1
    for i in range(math.ceil(low_y / step - 1e-9), math.floor(high_y / step + 1e-9) + 1):
        parts.append(_line(LEFT, y(i * step), WIDTH - RIGHT, y(i * step), "#e7e9ee"))
        parts.append(_text(LEFT - 10, y(i * step) + 4, f"{100 * i * step:.0f}", "end"))
    ticks: list[float] = []
    for cost in sorted({p[0] for p in points}):
        if not ticks or x(cost) - x(ticks[-1]) > 9 * len(axis.text(cost)) + 16:
            ticks.append(cost)
            parts.append(_line(x(cost), HEIGHT - BOTTOM, x(cost), HEIGHT - BOTTOM + 5, "#8a90a0"))
            parts.append(_text(x(cost), HEIGHT - BOTTOM + 20, axis.text(cost), "middle"))
    parts.append(_line(LEFT, HEIGHT - BOTTOM, WIDTH - RIGHT, HEIGHT - BOTTOM, "#8a90a0"))
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(_text(middle, HEIGHT - 8, axis.label, "middle"))
    turn = f'transform="rotate(-90 16 {HEIGHT / 2 - 20})"'
    parts.append(_text(16, HEIGHT / 2 - 20, "accuracy, %", "middle", turn))
    if dense:
        top, bottom = y(dense[3]), y(dense[2])
        parts.append(
            f'<rect x="{LEFT}" y="{top:.1f}" width="{WIDTH - LEFT - RIGHT}" height="{bottom - top:.1f}" '
            'fill="#20242e" opacity="0.06"/>'
        )
        parts.append(_line(LEFT, y(dense[1]), WIDTH - RIGHT, y(dense[1]), "#20242e", 'stroke-dasharray="6 4"'))
    # Error bars of equal budgets would hide each other: each series is moved sideways, by 15 pixels at most.
    pitch = min(3.0, 30 / max(1, len(series) - 1))
    shifts = [(i - (len(series) - 1) / 2) * pitch for i in range(len(series))]
    if frontier:
        moved = {point[:2]: shift for one, shift in zip(series, shifts) for point in one.points}
        steps = [(x(at) + moved.get((at, accuracy), 0), y(accuracy)) for at, accuracy in pareto(points)]
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in steps)
        parts.append(f'<polyline points="{path}" fill="none" {FRONT}/>')
    for i, one in enumerate(series):
        parts += _draw(one, i, shifts[i], x, y)
    parts += _legend(series, dense, axis, frontier)
    return "\n".join([*parts, "</svg>"])


def pareto(points: Sequence[tuple[float, float, float, float]]) -> list[tuple[float, float]]:
    """(cost, accuracy) of the points that no cheaper one reaches, by rising cost."""
    best: list[tuple[float, float]] = []
    for cost, accuracy, _, _ in sorted(points, key=lambda point: (point[0], -point[1])):
        if not best or accuracy > best[-1][1]:
            best.append((cost, accuracy))
    return best


def _draw(one: Series, index: int, shift: float, x, y) -> list[str]:  # type: ignore[no-untyped-def]
    color = COLORS[index % len(COLORS)]
    places = [(x(p[0]) + shift, *(y(v) for v in p[1:])) for p in sorted(one.points)]
    path = " ".join(f"{px:.1f},{py:.1f}" for px, py, _, _ in places)
    parts = [f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2" opacity="0.85"/>']
    for px, py, low, high in places:
        parts.append(_line(px, low, px, high, color, 'stroke-width="1.4"'))
        parts += [_line(px - 3, edge, px + 3, edge, color, 'stroke-width="1.4"') for edge in (low, high)]
        parts.append(_marker(index, px, py, color))
    return parts


def _legend(
    series: Sequence[Series], dense: tuple[float, float, float, float] | None, axis: Axis, frontier: bool
) -> list[str]:
    parts, left = [], WIDTH - RIGHT + 22
    best_first = sorted(range(len(series)), key=lambda i: -sum(p[1] for p in series[i].points) / len(series[i].points))
    top, pitch = TOP + 14, min(24, (HEIGHT - TOP - 20) // (len(series) + 1 + frontier))
    if dense:
        parts.append(_line(left - 9, top - 4, left + 9, top - 4, "#20242e", 'stroke-dasharray="5 3"'))
        parts.append(_text(left + 18, top, f"dense, {axis.text(dense[0])}{axis.unit}"))
        top += pitch
    if frontier:
        parts.append(f'<line x1="{left - 9}" y1="{top - 4}" x2="{left + 9}" y2="{top - 4}" {FRONT}/>')
        parts.append(_text(left + 18, top, "Pareto front"))
        top += pitch
    for i in best_first:
        color = COLORS[i % len(COLORS)]
        parts.append(_line(left - 9, top - 4, left + 9, top - 4, color, 'stroke-width="2"'))
        parts += [_marker(i, left, top - 4, color), _text(left + 18, top, series[i].name)]
        top += pitch
    return parts


def _line(x0: float, y0: float, x1: float, y1: float, color: str, extra: str = "") -> str:
    return f'<line x1="{x0:.1f}" y1="{y0:.1f}" x2="{x1:.1f}" y2="{y1:.1f}" stroke="{color}" {extra}/>'


def _text(x: float, y: float, text: str, anchor: str = "start", extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" {extra}>{escape(text)}</text>'


def _marker(index: int, x: float, y: float, color: str) -> str:
    style = f'fill="{color}" stroke="#fff" stroke-width="1.2"'
    corners: tuple[tuple[float, float], ...]
    # Shifted whenever the colours are used up, so that no two lines are alike.
    match MARKERS[(index + index // len(COLORS)) % len(MARKERS)]:
        case "circle":
            return f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4.5" {style}/>'
        case "square":
            return f'<rect x="{x - 4:.1f}" y="{y - 4:.1f}" width="8" height="8" {style}/>'
        case "diamond":
            corners = ((x, y - 5.5), (x + 5.5, y), (x, y + 5.5), (x - 5.5, y))
        case _:
            corners = ((x, y - 5.5), (x + 5, y + 4), (x - 5, y + 4))
    return f'<polygon points="{" ".join(f"{a:.1f},{b:.1f}" for a, b in corners)}" {style}/>'
