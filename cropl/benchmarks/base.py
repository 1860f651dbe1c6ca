"""What every benchmark shares: its questions, and what it makes of an answer, in a few integers.

Sums of integers are the same on one process and on many; `cropl.benchmarks.scoring` makes scores of them.

Shapes: Q questions, C columns.
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
        question: as the annotation file asks it; "" where that has only its number.
        aliases: other ids that it is published with.
    """

    id: str
    answers: tuple[str, ...]
    group: str = ""
    unit: str = ""
    choices: int = 0
    counted: bool = True
    question: str = ""
    aliases: tuple[str, ...] = ()


class Benchmark(ABC):
    """One benchmark's official scorer.

    Attributes:
        name: as recipes, rows and `cropl score` call it.
        primary: the score that tables hold.
        columns: what is counted of a unit.
        submission: name of the file, or of the folder, that official scripts or servers read.
    """

    name: ClassVar[str]
    primary: ClassVar[str]
    columns: ClassVar[tuple[str, ...]] = ("right", "questions")
    submission: ClassVar[str] = "submission.json"

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

    def known_as(self, id: str, prompt: str, source: str = "") -> str:
        """The id of a question, from the one that it has where it is asked or answered, its prompt and its source."""
        return id

    def asks(self, truth: Truth, prompt: str) -> bool:
        """Whether a prompt asks this question: has its words, whatever their case and the spaces between them."""
        return plain(truth.question) in plain(prompt)

    def write_submission(self, path: Path, truths: Sequence[Truth], answers: Mapping[str, str]) -> None:
        """Write answers as official scripts or servers read them, into a file or a folder at `path`.

        Args:
            path: the file or folder.
            truths: the questions, all of which it has to cover.
            answers: as they are `submitted`, by the id of their question.

        Raises:
            AnswersError: an answer is missing, or is to no question.
            ValueError: there is no official form.
        """
        raise ValueError(f"{self.name} has no official form for answers: its `write_submission` says none")

    def submitted_rows(self, path: Path, truths: Sequence[Truth]) -> Iterator[Any] | None:
        """The answers of a submission that is no list: objects with `question_id` and `answer` (`text`, if as the model
        gave it). None: it is a list, or lines."""
        return None

    def submitted(self, answer: str) -> str:
        """A model's answer as it is handed in to whoever scores it."""
        return answer

    def credit(self, counts: Sequence[int]) -> float:
        """How right one answer is, 0..1, from what it adds to the columns."""
        return float(counts[0])

    def unite(self, counts_QC: Counts) -> Counts:
        """The counts of a unit in a group from those of its questions: their sum, unless a pair counts for more."""
        summed: Counts = counts_QC.sum(0)
        return summed


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
        "asked twice": repeated([truth.id for truth in truths]),
        "answered twice": repeated(ids),
        "without an answer": [truth.id for truth in truths if truth.counted and truth.id not in seen],
        "not among the questions": [id for id in dict.fromkeys(ids) if id not in known],
    }
    told = [f"{len(found)} {what} ({some(found)})" for what, found in faults.items() if found]
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


def plain(text: str) -> str:
    """Lower case, with a single space between words."""
    return " ".join(text.lower().split())


def repeated(ids: Sequence[str]) -> list[str]:
    """Those that come more than once."""
    return [id for id, times in Counter(ids).items() if times > 1]


def some(ids: Sequence[str]) -> str:
    """The first few."""
    return ", ".join(ids[:5]) + (", ..." if len(ids) > 5 else "")
