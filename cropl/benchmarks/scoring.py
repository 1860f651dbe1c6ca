"""Official scores from what each answer adds to a benchmark's columns, with their intervals.

Resampling sums of integers gives the interval of any score, also of one that is no mean, such as F1 or MME's. Questions
about one image stand or fall together, so images are what is drawn.

Shapes: Q questions, U units (images, or questions that have theirs alone), G groups, C columns, R resamples.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from cropl.benchmarks.base import Benchmark, Counts, Truth


@dataclass(frozen=True)
class Score:
    """Official scores of a set of answers.

    Attributes:
        values: each score, unrounded, in the benchmark's own unit (percent, or points).
        intervals: its 95 % bootstrap interval over units, drawn among those that have questions in the same groups.
        n: questions.
    """

    values: Mapping[str, float]
    intervals: Mapping[str, tuple[float, float]]
    n: int


def exact(benchmark: Benchmark, truths: Sequence[Truth], counts_QC: Counts) -> dict[str, float]:
    """Every score, unrounded, from what each question adds to the columns.

    Raises:
        ValueError: there are no questions.
    """
    groups, counts_UGC = units(benchmark, truths, counts_QC)
    return {name: float(value) for name, value in benchmark.scores(_by_group(groups, counts_UGC.sum(0))).items()}


def tally(benchmark: Benchmark, truths: Sequence[Truth], counts_QC: Counts, seed: int = 0, n: int = 2000) -> Score:
    """Scores and intervals from what each question adds to the columns.

    Args:
        benchmark: whose scores.
        truths: the questions.
        counts_QC: of each, in their order.
        seed: of the resamples.
        n: resamples.

    Raises:
        ValueError: there are no questions.
    """
    [drawn] = draws(benchmark, truths, [counts_QC], seed, n)
    intervals = {name: interval(values_R) for name, values_R in drawn.items()}
    return Score(exact(benchmark, truths, counts_QC), intervals, sum(truth.counted for truth in truths))


def compare(
    benchmark: Benchmark, truths: Sequence[Truth], ours_QC: Counts, theirs_QC: Counts, seed: int = 0, n: int = 2000
) -> dict[str, tuple[float, float, float]]:
    """Each score's difference, ours less theirs, with its paired 95 % interval: the same units are drawn of both."""
    ours, theirs = exact(benchmark, truths, ours_QC), exact(benchmark, truths, theirs_QC)
    drawn, beside = draws(benchmark, truths, [ours_QC, theirs_QC], seed, n)
    return {name: (ours[name] - theirs[name], *interval(drawn[name] - beside[name])) for name in ours}


def draws(
    benchmark: Benchmark, truths: Sequence[Truth], sets: Sequence[Counts], seed: int = 0, n: int = 2000
) -> list[dict[str, npt.NDArray[np.float64]]]:
    """Every score's bootstrap values (R,) for each of several sets of answers; the same units are drawn for all."""
    made = [units(benchmark, truths, counts_QC) for counts_QC in sets]
    groups = made[0][0]
    columns = len(benchmark.columns)
    drawn_RGC = _resampled(np.concatenate([counts_UGC for _, counts_UGC in made], axis=2), seed, n)
    parts = [drawn_RGC[..., columns * i : columns * (i + 1)] for i in range(len(sets))]
    return [benchmark.scores(_by_group(groups, part_RGC)) for part_RGC in parts]


def units(benchmark: Benchmark, truths: Sequence[Truth], counts_QC: Counts) -> tuple[list[str], Counts]:
    """The groups, and the counts (U, G, C) of each unit in each of them, 0 where it has no question.

    Raises:
        ValueError: there are no questions.
    """
    if not any(truth.counted for truth in truths):
        raise ValueError(f"{benchmark.name}: no questions to score")
    rows: dict[tuple[str, str], list[int]] = {}
    for index, truth in enumerate(truths):
        if truth.counted:
            rows.setdefault((truth.unit or truth.id, truth.group), []).append(index)
    groups = list(dict.fromkeys(group for _, group in rows))
    names = {unit: place for place, unit in enumerate(dict.fromkeys(unit for unit, _ in rows))}
    counts_UGC = np.zeros((len(names), len(groups), counts_QC.shape[1]), dtype=np.int64)
    for (unit, group), indices in rows.items():
        counts_UGC[names[unit], groups.index(group)] = benchmark.unite(counts_QC[indices])
    return groups, counts_UGC


def _by_group(groups: Sequence[str], totals: npt.NDArray[Any]) -> dict[str, npt.NDArray[np.float64]]:
    return {group: totals[..., place, :].astype(np.float64) for place, group in enumerate(groups)}


def _resampled(counts_UGC: Counts, seed: int, n: int) -> npt.NDArray[np.float64]:
    """Sums (R, G, C) of as many units drawn with replacement, among those with questions in the same groups.

    Units of equal counts are one kind: how often each kind is drawn is multinomial, which takes no time.
    """
    rng = np.random.default_rng(seed)
    there_UG = counts_UGC.any(2)
    sums = np.zeros((n, *counts_UGC.shape[1:]))
    for pattern in np.unique(there_UG, axis=0):
        mine = counts_UGC[(there_UG == pattern).all(1)]
        kinds, times = np.unique(mine.reshape(len(mine), -1), axis=0, return_counts=True)
        drawn = rng.multinomial(len(mine), times / len(mine), size=n)
        sums += (drawn @ kinds).reshape(sums.shape)
    return sums


def interval(values_R: npt.NDArray[np.float64]) -> tuple[float, float]:
    """Where 95 % of the bootstrap values lie."""
    low, high = np.quantile(values_R, [0.025, 0.975])
    return float(low), float(high)
