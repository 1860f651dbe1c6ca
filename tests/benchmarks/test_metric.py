"""Official scores as a metric: any split of the questions over ranks gives the same, and slips are named."""

from __future__ import annotations

import pytest
import torch

from cropl.benchmarks.base import AnswersError, Truth, judged
from cropl.benchmarks.metric import BenchmarkScore
from cropl.benchmarks.mme import Mme
from cropl.benchmarks.pope import Pope
from cropl.benchmarks.scoring import tally

TRUTHS = [Truth(f"{task}/{i}{end}", (says,), task, f"{task}/{i}") for task in ("count", "OCR") for i in range(5)
          for end, says in (("", "yes"), ("-2", "no"))]  # fmt: skip
ANSWERS = {truth.id: ("Yes", "No", "perhaps")[place % 3] for place, truth in enumerate(TRUTHS)}


def added(parts: list[BenchmarkScore]) -> BenchmarkScore:
    """What a reduction by sums leaves on every rank."""
    whole = BenchmarkScore(parts[0].benchmark, parts[0].truths)
    whole.counts, whole.seen = sum(part.counts for part in parts), sum(part.seen for part in parts)
    whole._update_count = 1
    return whole


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_any_split_of_the_questions_gives_the_official_scores(ranks) -> None:
    parts = [BenchmarkScore(Mme(), TRUTHS) for _ in range(ranks)]
    ids = list(ANSWERS)
    for rank, part in enumerate(parts):  # the two questions of an image may be answered by different ranks
        mine = ids[rank::ranks]
        padded = mine + ids[: ranks - 1]
        valid = [True] * len(mine) + [False] * (ranks - 1)
        part.update(padded, [ANSWERS[id] for id in padded], valid)
    whole, expected = added(parts), tally(Mme(), TRUTHS, judged(Mme(), TRUTHS, ANSWERS))
    assert {name: float(value) for name, value in whole.compute().items()} == expected.values
    assert whole.score().intervals == expected.intervals
    assert whole.half().counts.dtype == torch.int64


def test_missing_double_and_unknown_answers_are_named() -> None:
    truths = [Truth(f"random/{i}", ("yes",), "random") for i in range(3)]
    metric = BenchmarkScore(Pope(), truths)
    metric.update(["random/0", "random/1"], ["yes", "no"])
    with pytest.raises(AnswersError, match=r"1 without an answer \(random/2\)"):
        metric.compute()
    assert metric(["random/2", "random/0"], ["yes", "no"]) is None  # a batch by itself has no scores
    with pytest.raises(AnswersError, match=r"1 answered twice \(random/0\)"):
        metric.compute()
    with pytest.raises(AnswersError, match="random/9 is not among the 3 questions"):
        metric.update(["random/9"], ["yes"])
    metric.reset()
    metric.update([truth.id for truth in truths], ["yes"] * 3)
    assert float(metric.compute()["f1"]) == 100
