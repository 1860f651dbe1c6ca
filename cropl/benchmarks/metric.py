"""A benchmark's official scores as a metric: the same on one process and on many, and no question forgotten."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torchmetrics import Metric

from cropl.benchmarks.base import AnswersError, Benchmark, Counts, Truth, check_answers
from cropl.benchmarks.scoring import Score, exact, tally


class BenchmarkScore(Metric):
    """Collects judged answers; `compute()` gives every official score as a float64 scalar, `score()` intervals as well.

    What is added up is a row of integers for each question, so any split of the questions over ranks gives the same
    numbers, a question that nobody answered is known, and so is one that two ranks answered.

    Args:
        benchmark: whose scores.
        truths: all its questions, in the same order on every rank.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False

    counts: Tensor
    seen: Tensor

    def __init__(self, benchmark: Benchmark, truths: Sequence[Truth]) -> None:
        super().__init__()
        self.benchmark, self.truths = benchmark, list(truths)
        self._place = {truth.id: place for place, truth in enumerate(self.truths)}
        self._nothing = (0,) * len(benchmark.columns)
        self.add_state(
            "counts", torch.zeros(len(self.truths), len(self._nothing), dtype=torch.int64), dist_reduce_fx="sum"
        )
        self.add_state("seen", torch.zeros(len(self.truths), dtype=torch.int64), dist_reduce_fx="sum")

    def update(self, ids: Sequence[str], answers: Sequence[str], valid: Sequence[bool] | None = None) -> None:
        """Judge answers.

        Args:
            ids: of their questions.
            answers: as the model gave them.
            valid: False leaves one out (padding of an uneven evaluation).

        Raises:
            AnswersError: an answer to no question.
        """
        valid = [True] * len(ids) if valid is None else valid
        places: list[int] = []
        counts: list[tuple[int, ...]] = []
        for id, answer, counted in zip(ids, answers, valid, strict=True):
            if not counted:
                continue
            if id not in self._place:
                raise AnswersError(f"{self.benchmark.name}: {id} is not among the {len(self.truths)} questions")
            place = self._place[id]
            truth, said = self.truths[place], self.benchmark.submitted(answer)
            places.append(place)
            counts.append(self.benchmark.judge(truth, said) if truth.counted else self._nothing)
        if not places:
            return
        device = self.seen.device
        at = torch.tensor(places, device=device)
        # Not in place: a state that was reset in inference mode may not be changed outside of it.
        self.counts = self.counts.index_add(0, at, torch.tensor(counts, device=device))
        self.seen = self.seen.index_add(0, at, torch.ones_like(at))

    def compute(self) -> dict[str, Tensor]:
        """Every score, see `Benchmark.scores`.

        Raises:
            AnswersError: a question has no answer, or two.
        """
        values = exact(self.benchmark, self.truths, self._checked())
        return {name: torch.tensor(value, dtype=torch.float64) for name, value in values.items()}

    def forward(self, *args: Any, **kwargs: Any) -> None:
        """As `update`: a batch by itself has no scores."""
        self.update(*args, **kwargs)

    def score(self, seed: int = 0) -> Score:
        """The scores of what this process knows, with their intervals; see `tally`."""
        return tally(self.benchmark, self.truths, self._checked(), seed)

    def _checked(self) -> Counts:
        times = self.seen.tolist()
        check_answers(self.truths, [truth.id for truth, n in zip(self.truths, times, strict=True) for _ in range(n)])
        return self.counts.cpu().numpy().astype(np.int64)

    def set_dtype(self, dst_type: str | torch.dtype) -> BenchmarkScore:
        """Nothing: counts stay int64."""
        return self
