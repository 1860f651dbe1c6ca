"""How long something takes, again and again: pairs that take turns, and medians with their intervals."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from statistics import median
from typing import Any

import numpy as np
import torch
from transformers import StoppingCriteria, StoppingCriteriaList

from cropl.metrics.bootstrap import bootstrap_ci


class Clock:
    """Times work on a device.

    On a GPU that is between two events, with nothing else in its queue. On one CPU thread it is the time that the
    thread computes, which other load on the machine hardly changes; on several it is the wall's.

    Args:
        device: where the work is done.
        threads: of the CPU.
    """

    def __init__(self, device: torch.device, threads: int) -> None:
        self.device = device
        self.on_gpu = device.type == "cuda"
        self.name = "events of the GPU" if self.on_gpu else "CPU time of one thread" if threads == 1 else "wall clock"
        self._now = time.process_time if threads == 1 else time.perf_counter

    def __call__(self, work: Callable[[], object]) -> float:
        """Seconds that the work takes."""
        return self.stamps(lambda stamp: work())[-1]

    def stamps(self, work: Callable[[Callable[[], None]], object]) -> list[float]:
        """Seconds from the start to each call of the function that the work is given, and to its end."""
        marks: list[Any] = []

        def stamp() -> None:
            if self.on_gpu:
                marks.append(torch.cuda.Event(enable_timing=True))
                marks[-1].record()
            else:
                marks.append(self._now())

        if self.on_gpu:
            torch.cuda.synchronize(self.device)
        stamp()
        work(stamp)
        stamp()
        if not self.on_gpu:
            return [mark - marks[0] for mark in marks[1:]]
        torch.cuda.synchronize(self.device)
        return [marks[0].elapsed_time(mark) / 1e3 for mark in marks[1:]]


class Stamper(StoppingCriteria):
    """Calls a function after every token that `generate` makes, and stops nothing."""

    def __init__(self, stamp: Callable[[], None]) -> None:
        self.stamp = stamp

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> torch.BoolTensor:
        self.stamp()
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)  # type: ignore[return-value]

    def as_list(self) -> StoppingCriteriaList:
        """For `generate`."""
        return StoppingCriteriaList([self])


@contextmanager
def pinned(threads: int) -> Iterator[None]:
    """This many threads inside, and as many as before afterwards."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def turns(
    count: int, ours: Callable[[], Any], theirs: Callable[[], Any], advance: Callable[[], None] = lambda: None
) -> list[tuple[Any, Any]]:
    """Results of `ours` and `theirs`, taking turns; which of the two goes first alternates, too."""
    pairs = []
    for number in range(count):
        if number % 2:
            mine = ours()
            pairs.append((mine, theirs()))
        else:
            other = theirs()
            pairs.append((ours(), other))
        advance()
    return pairs


def summary(seconds: Sequence[float]) -> dict[str, Any]:
    """Median, and the least and the most."""
    return {"seconds": median(seconds), "spread": [min(seconds), max(seconds)]}


FEWEST = 6
"""Values that a 95 % interval of their median takes: the least and the most of five hold it 94 % of the time."""


def median_interval(values: Sequence[float], level: float = 0.95) -> tuple[float, float]:
    """Percentile bootstrap interval of the median, the same for the same values; of fewer than `FEWEST` values the
    least and the most."""
    if len(values) < FEWEST:
        return min(values), max(values)
    return bootstrap_ci(values, level=level, statistic=np.median)


def speedup(
    pairs: Sequence[tuple[float, float]],
    ideal: float,
    ours: Sequence[float] | None = None,
    both: Sequence[float] | None = None,
    beside: Sequence[float] | None = None,
) -> dict[str, Any]:
    """How many times as fast ours is: the median over pairs of (ours, dense), its interval, and its share of the ideal.

    Args:
        pairs: seconds of ours and of the dense run next to it.
        ideal: the ratio of their FLOPs.
        ours: further seconds that ours takes, by pair; None is none, here and below.
        both: further seconds that both take.
        beside: seconds of what runs at the same time as ours, which cannot end before it.
    """
    none = [0.0] * len(pairs)
    ratios = [
        (dense + all) / max(mine + all + more, least)
        for (mine, dense), more, all, least in zip(pairs, ours or none, both or none, beside or none, strict=True)
    ]
    low, high = median_interval(ratios)
    measured = median(ratios)
    found = {"measured": measured, "interval": [low, high], "pairs": len(pairs)}
    return {**found, "ideal": ideal, "of_ideal": measured / ideal}
