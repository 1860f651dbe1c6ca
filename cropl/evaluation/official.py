"""A benchmark's own score of every arm, beside the mean credit per question that all studies have.

Shapes: Q questions, C columns of a benchmark's counts.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from cropl.benchmarks.base import Benchmark, Counts, Truth
from cropl.benchmarks.scoring import draws, exact, interval, units
from cropl.errors import UsageError

if TYPE_CHECKING:
    import numpy.typing as npt


@dataclass(frozen=True)
class Official:
    """How the answers of one study are scored.

    Attributes:
        benchmark: that scores.
        truths: the questions that are asked, as its annotations have them.
        ids: of the truth of every sample, in the samples' order.
        complete: whether these are all questions of the annotations.
    """

    benchmark: Benchmark
    truths: Sequence[Truth]
    ids: Sequence[str]
    complete: bool = True

    @classmethod
    def joined(cls, benchmark: Benchmark, truths: Sequence[Truth], ids: Sequence[str], limit: int | None) -> Official:
        """Of the first `limit` samples, whose truths have these `ids`; None for all of them.

        Raises:
            UsageError: these cannot be scored, as half of an image's two questions of MME.
        """
        if limit is None or limit >= len(ids):
            return cls(benchmark, truths, ids)
        asked = set(ids[:limit])
        made = cls(benchmark, [truth for truth in truths if truth.id in asked], ids[:limit], complete=False)
        if made.scored:
            try:
                units(benchmark, made.truths, np.zeros((len(made.truths), len(benchmark.columns)), dtype=np.int64))
            except ValueError as error:
                raise UsageError(f"limit {limit}: {error}; take one more or fewer") from None
        return made

    @property
    def scored(self) -> bool:
        """Whether the answers are known here, and not to a server alone."""
        return any(truth.counted for truth in self.truths)

    def counts(self, texts: Sequence[str]) -> Counts:
        """What the answers to the samples add to the columns (Q, C), in the order of the truths."""
        said = dict(zip(self.ids, texts, strict=True))
        nothing = (0,) * len(self.benchmark.columns)
        judge, submitted = self.benchmark.judge, self.benchmark.submitted
        rows = [
            judge(one, submitted(said[one.id])) if one.counted and one.id in said else nothing for one in self.truths
        ]
        return np.array(rows, dtype=np.int64)

    def credits(self, counts_QC: Counts) -> npt.NDArray[np.float64]:
        """How right each answer is, 0..1, in the order of the samples."""
        credit = self.benchmark.credit
        known = {truth.id: credit(row.tolist()) for truth, row in zip(self.truths, counts_QC, strict=True)}
        return np.array([known[id] for id in self.ids])

    def scores(self, seeds: Sequence[Counts], dense_QC: Counts, seed: int, n: int) -> dict[str, Any]:
        """The official fields of a row: every score, with its interval, alone and against dense.

        Args:
            seeds: the counts of the answers, once for every seed of the arm; scores are means over them.
            dense_QC: those of the dense answers.
            seed: of the resamples.
            n: resamples.
        """
        name = self.benchmark.primary
        sets = [dense_QC, *seeds]
        reference, *values = (exact(self.benchmark, self.truths, one) for one in sets)
        beside, *drawn = draws(self.benchmark, self.truths, sets, seed, n)
        means = {score: float(np.mean([one[score] for one in values])) for score in reference}
        drawn_means = {score: np.mean([one[score] for one in drawn], axis=0) for score in reference}
        relative = None if reference[name] <= 0 else 100 * means[name] / reference[name]
        return {
            "primary": name,
            "score": means[name],
            "score_ci95": list(interval(drawn_means[name])),
            "scores": means,
            "scores_ci95": {score: list(interval(values_R)) for score, values_R in drawn_means.items()},
            "score_vs_dense": {
                "difference": means[name] - reference[name],
                "ci95": list(interval(drawn_means[name] - beside[name])),
            },
            "rel_acc": relative,
            "rel_acc_sd": None if relative is None else spread(drawn_means[name], beside[name]),
            "score_source": "local",
        }


def spread(ours_R: npt.NDArray[np.float64], dense_R: npt.NDArray[np.float64]) -> float:
    """Standard deviation of RelAcc, in points, over resamples of both; those without a dense score count for none."""
    there = dense_R > 0
    return float(np.std(100 * (ours_R[there] / dense_R[there]))) if there.any() else 0.0


UNSCORED: Mapping[str, Any] = {
    "primary": None, "score": None, "score_ci95": None, "scores": {}, "scores_ci95": {}, "score_vs_dense": None,
    "rel_acc": None, "rel_acc_sd": None, "score_source": "server",
}  # fmt: skip
"""The official fields where only a server knows the answers, or a budget is infeasible."""
