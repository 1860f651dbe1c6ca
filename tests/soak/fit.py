"""Does a quantity grow? A line through it, after a warm-up, with how sure its slope is."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

WARM_UP, BLOCKS, LEVEL = 0.2, 12, 0.02
"""Share of the time that is left out; means that the line is laid through; the change over a run that is still flat."""

T_975 = {4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228}
"""Student's t for a two-sided 95 % interval, by degrees of freedom."""


@dataclass(frozen=True)
class Growth:
    """A line through a quantity.

    Attributes:
        start: where it begins, after the warm-up.
        mean: of the quantity, from there on.
        per_hour: its slope.
        interval: half the width of the slope's 95 % interval.
        change: over the run, as a share of the start; of nothing, the change itself.
    """

    start: float
    mean: float
    per_hour: float
    interval: float
    change: float

    @property
    def flat(self) -> bool:
        """No more than 2 % of change over the run, up or down."""
        return abs(self.change) <= LEVEL

    @property
    def grows(self) -> bool:
        """More than 2 % up, and surely more than nothing."""
        return self.change > LEVEL and self.per_hour > self.interval


def growth(samples: Sequence[Mapping[str, float]], name: str, warm_up: float = WARM_UP, most: bool = False) -> Growth:
    """How a quantity of `samples` grows with their `seconds`, when the share `warm_up` of the time is over.

    Neighbours resemble each other, so that single samples would make any slope look sure: the line goes through means
    of up to twelve blocks in a row.

    Raises:
        ValueError: fewer than 6 samples have it after the warm-up.
    """
    ends = warm_up * samples[-1]["seconds"] if samples else 0.0
    kept = [(each["seconds"] / 3600, each[name]) for each in samples if name in each and each["seconds"] >= ends]
    if len(kept) < min(T_975) + 2:
        raise ValueError(f"{name}: {len(kept)} samples after the warm-up are too few for a line")
    parts = np.array_split(np.array(kept), min(BLOCKS, len(kept)))
    blocks = np.array([(part[:, 0].mean(), part[:, 1].max() if most else part[:, 1].mean()) for part in parts])
    x, y = blocks[:, 0] - blocks[:, 0].mean(), blocks[:, 1]
    slope = float(x @ (y - y.mean()) / (x @ x))
    rest = y - y.mean() - slope * x
    free = len(blocks) - 2
    interval = T_975[free] * math.sqrt(float(rest @ rest) / free / float(x @ x))
    hours = kept[-1][0] - kept[0][0]
    start = float(y.mean() + slope * (kept[0][0] - blocks[:, 0].mean()))
    return Growth(start, float(np.mean([value for _, value in kept])), slope, interval, slope * hours / (start or 1.0))
