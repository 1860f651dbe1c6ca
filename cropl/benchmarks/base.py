"""What every benchmark shares: judged answers, counts of them in integers, and scores with their intervals.

A benchmark judges one answer into a few integers, and says how their sums become its official scores. Sums of integers
are the same on one process and on many, and resampling them gives the interval of any score, also of one that is no
mean, such as F1 or MME's. Questions about one image stand or fall together, so images are what is drawn.

Shapes: Q questions, U units (images, or questions that have theirs alone), G groups, C columns, R resamples.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Totals = Mapping[str, npt.NDArray[np.float64]]
"""Column sums (..., C) of each group."""


@dataclass(frozen=True)
class Truth:
    """A question as its scorer knows it.

    Attributes:
        id: unique within the benchmark.
        answers: what the annotators said; one text where there is one truth.
        group: part of the benchmark that is scored by itself, such as a task of MME; "" where there are none.
        unit: what it is drawn with, such as its image, also in other groups; "" is the question alone.
        choices: number of lettered options; 0 where there are none.
        counted: False for a question that may be answered, and is in no score.
    """

    id: str
    answers: tuple[str, ...]
    group: str = ""
    unit: str = ""
    choices: int = 0
    counted: bool = True


class Benchmark(ABC):
    """One benchmark's official scorer.

    Attributes:
        name: as recipes, rows and `cropl score` call it.
        primary: the score that tables hold.
        columns: what is counted of a unit.
    """

    name: ClassVar[str]
    primary: ClassVar[str]
    columns: ClassVar[tuple[str, ...]] = ("right", "questions")

    @abstractmethod
    def truths(self, *files: Path) -> Iterator[Truth]:
        """The questions of the official annotation files.

        Raises:
            ValueError: a file is missing or malformed; the message names it.
        """

    @abstractmethod
    def judge(self, truth: Truth, answer: str) -> tuple[int, ...]:
        """What an answer, as it is `submitted`, adds to the columns."""

    @abstractmethod
    def scores(self, totals: Totals) -> dict[str, npt.NDArray[np.float64]]:
        """The official scores from the column sums of each group, in their own units; leading dimensions are kept."""

    def known_as(self, id: str, prompt: str) -> str:
        """The id of the question that a published answer is to, from the id that it has there and its prompt."""
        return id

    def submitted(self, answer: str) -> str:
        """A model's answer as it is handed in to whoever scores it."""
        return answer

    def unite(self, counts_QC: Counts) -> Counts:
        """The counts of a unit in a group from those of its questions: their sum, unless a pair counts for more."""
        summed: Counts = counts_QC.sum(0)
        return summed


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


class AnswersError(ValueError):
    """Answers that do not fit the questions: some are missing, there twice, or to no question."""


def read_truths(benchmark: Benchmark, files: Sequence[Path]) -> list[Truth]:
    """All questions of the official annotation files.

    Raises:
        ValueError: they are not this benchmark's, or malformed; the message names them and how far they were read.
    """
    found: list[Truth] = []
    try:
        for truth in benchmark.truths(*files):
            found.append(truth)
    except (KeyError, TypeError, AttributeError, IndexError) as error:
        told = f"{type(error).__name__}: {error}, behind {len(found)} questions"
        raise ValueError(
            f"{', '.join(map(str, files))}: not {benchmark.name}'s annotations with answers ({told})"
        ) from None
    return found


def check_answers(truths: Sequence[Truth], ids: Sequence[str]) -> None:
    """Raise `AnswersError` that names them, unless every question has one answer and every answer its question."""
    known, seen = {truth.id for truth in truths}, set(ids)
    faults = {
        "asked twice": _repeated([truth.id for truth in truths]),
        "answered twice": _repeated(ids),
        "without an answer": [truth.id for truth in truths if truth.counted and truth.id not in seen],
        "not among the questions": [id for id in dict.fromkeys(ids) if id not in known],
    }
    told = [f"{len(found)} {what} ({_some(found)})" for what, found in faults.items() if found]
    if told:
        raise AnswersError(f"the answers do not fit the {len(truths)} questions: {'; '.join(told)}")


def judged(benchmark: Benchmark, truths: Sequence[Truth], answers: Mapping[str, str]) -> Counts:
    """What each answer adds to the columns (Q, C), in the order of the questions.

    Args:
        benchmark: that judges.
        truths: the questions.
        answers: as they are submitted, by the id of their question.

    Raises:
        AnswersError: an answer is missing, or is to no question.
    """
    check_answers(truths, list(answers))
    nothing = (0,) * len(benchmark.columns)
    counts = [benchmark.judge(truth, answers[truth.id]) if truth.counted else nothing for truth in truths]
    return np.array(counts, dtype=np.int64)


def exact(benchmark: Benchmark, truths: Sequence[Truth], counts_QC: Counts) -> dict[str, float]:
    """Every score, unrounded, from what each question adds to the columns.

    Raises:
        ValueError: there are no questions.
    """
    return _exact(benchmark, *units(benchmark, truths, counts_QC))


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
    groups, counts_UGC = units(benchmark, truths, counts_QC)
    drawn = benchmark.scores(_by_group(groups, _resampled(counts_UGC, seed, n)))
    intervals = {name: _interval(values_R) for name, values_R in drawn.items()}
    return Score(_exact(benchmark, groups, counts_UGC), intervals, sum(truth.counted for truth in truths))


def compare(
    benchmark: Benchmark, truths: Sequence[Truth], ours_QC: Counts, theirs_QC: Counts, seed: int = 0, n: int = 2000
) -> dict[str, tuple[float, float, float]]:
    """Each score's difference, ours less theirs, with its paired 95 % interval: the same units are drawn of both."""
    groups, ours_UGC = units(benchmark, truths, ours_QC)
    _, theirs_UGC = units(benchmark, truths, theirs_QC)
    ours, theirs = _exact(benchmark, groups, ours_UGC), _exact(benchmark, groups, theirs_UGC)
    both_RGC = _resampled(np.concatenate([ours_UGC, theirs_UGC], axis=2), seed, n)
    columns = ours_UGC.shape[2]
    drawn = benchmark.scores(_by_group(groups, both_RGC[..., :columns]))
    beside = benchmark.scores(_by_group(groups, both_RGC[..., columns:]))
    return {name: (ours[name] - theirs[name], *_interval(drawn[name] - beside[name])) for name in ours}


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


def _exact(benchmark: Benchmark, groups: Sequence[str], counts_UGC: Counts) -> dict[str, float]:
    return {name: float(value) for name, value in benchmark.scores(_by_group(groups, counts_UGC.sum(0))).items()}


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


def _interval(values_R: npt.NDArray[np.float64]) -> tuple[float, float]:
    low, high = np.quantile(values_R, [0.025, 0.975])
    return float(low), float(high)


def _repeated(ids: Sequence[str]) -> list[str]:
    return [id for id, times in Counter(ids).items() if times > 1]


def _some(ids: Sequence[str]) -> str:
    return ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
