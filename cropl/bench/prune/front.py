"""What goes before the language model, the vision tower and the localizer, timed in the turns of one arm.

Each is measured right behind a pair and counts as its share of the dense run there: a machine that is slower by now is
so for both. What a pair is charged is that share of its own dense run.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from cropl.bench.prune.time import Clock, summary

EVERY = 4
"""Pairs of prefills from one sample to the next."""


@dataclass(frozen=True)
class Front:
    """Seconds that each measured pair is charged.

    Attributes:
        vision: of the vision tower.
        tower: further ones of it where the method has to see it.
        localizer: of the localizer; None where there is none.
        needed: whether the method needs a localizer.
    """

    vision: Sequence[float]
    tower: Sequence[float]
    localizer: Sequence[float] | None
    needed: bool

    @property
    def ours(self) -> list[float] | None:
        """What ours takes beyond dense; None where a localizer is needed and there is none."""
        if self.localizer is None:
            return None if self.needed else list(self.tower)
        return [sum(pair) for pair in zip(self.tower, self.localizer, strict=True)]


class Fronts:
    """Samples of one arm's turns; its `sample` is called behind every pair.

    Args:
        clock: that measures.
        encode: runs the vision tower.
        locate: runs the localizer; None where there is none, or the method needs none.
        towers: seconds of the watched tower, to which each run of ours adds its own; stays empty where none is watched.
        needed: whether the method needs a localizer.
        every: pairs from one sample to the next.
    """

    def __init__(
        self,
        clock: Clock,
        encode: Callable[[], object],
        locate: Callable[[], object] | None,
        towers: Sequence[float],
        needed: bool,
        every: int = EVERY,
    ) -> None:
        self.clock, self.needed, self.every = clock, needed, every
        self._encode, self._locate, self._towers = encode, locate, towers
        self._turns = 0
        self._vision: list[float] = []
        self._tower: list[float] = []
        self._localizer: list[float] = []

    def sample(self) -> None:
        """Measure, if it is this pair's turn."""
        if self._turns % self.every == 0:
            self._vision.append(self.clock(self._encode))
            self._tower.append(self._towers[-1] - self._vision[-1] if self._towers else 0.0)
            if self._locate is not None:
                self._localizer.append(self.clock(self._locate))
        self._turns += 1

    def charged(self, dense: Sequence[float]) -> Front:
        """What each pair is charged, from the seconds of all dense runs."""

        def of(samples: Sequence[float]) -> list[float]:
            share = median(taken / run for taken, run in zip(samples, dense[:: self.every], strict=True))
            return [share * run for run in dense]

        located = None if self._locate is None else of(self._localizer)
        return Front(of(self._vision), of(self._tower), located, self.needed)

    @property
    def vision(self) -> dict[str, Any]:
        """Seconds of the vision tower, as measured."""
        return summary(self._vision)

    @property
    def localizer(self) -> dict[str, Any]:
        """Seconds of the localizer, as measured."""
        return summary(self._localizer)
