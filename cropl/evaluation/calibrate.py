"""Chooses how large a localizer's regions have to be so that they hold what they should for a share of the questions.

Split-conformal calibration of the level r of the read-out `expected_recall`. A question's score is the least level from
which on its region holds enough of the true one, whatever lies below, so nothing is assumed of how regions grow with r.
The level is the ceil((n + 1) share)-th smallest of n scores. For a new question that is exchangeable with those n, its
score is at most that in at least `share` of all draws of the n + 1: the guarantee is marginal, over the calibration
questions too, and says nothing of one kind of question or of other pictures.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from fractions import Fraction
from statistics import NormalDist
from typing import TYPE_CHECKING, Any

import torch

from cropl.errors import UsageError
from cropl.evaluation.pictures import displayed
from cropl.grid import GRID, Region, TokenGrid
from cropl.metrics.area import AreaRecall
from cropl.models.placement import region_span
from cropl.models.region_distribution import Readout, RegionDistribution

if TYPE_CHECKING:
    from cropl.data.sample import Sample
    from cropl.models.localizer import Localizer

SIDE = 24
"""Regions are counted in tokens of LLaVA-1.5's 24 x 24, which is what most of the paper's tables prune."""
LEVELS = (0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.925, 0.95, 0.97, 0.98, 0.99, 0.995, 0.999)
"""Of the curves."""


@dataclass(frozen=True)
class Goal:
    """What is asked of a localizer: in `share` of the questions, at least `recall` of the true region's blocks."""

    share: float = 0.9
    recall: float = 0.9

    def __post_init__(self) -> None:
        for name in ("share", "recall"):
            value = getattr(self, name)
            if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value < 1:
                if name == "recall" and value == 1:
                    continue
                bound = "below 1" if name == "share" else "at most 1"
                raise UsageError(f"calibrate: {name} {value!r}: give a number above 0 and {bound}")

    def holds(self, region: Region, truth: Region) -> bool:
        """Whether the region has enough of the true one; exact."""
        return region.intersection(truth) >= _exact(self.recall) * truth.area

    def least_questions(self) -> int:
        """The fewest questions that a level can be calibrated on."""
        share = _exact(self.share)
        return math.ceil(share / (1 - share))

    def rank(self, n: int) -> int:
        """Which of n scores is taken, from 1 for the least.

        Raises:
            UsageError: there are too few for the share: even the greatest would promise too little.
        """
        rank = math.ceil((n + 1) * _exact(self.share))
        if rank > n:
            raise UsageError(
                f"calibrate: {n} calibration question{'' if n == 1 else 's'} cannot promise a share of {self.share}: "
                f"give at least {self.least_questions()}, or a smaller share"
            )
        return rank


def _exact(value: float) -> Fraction:
    return Fraction(str(value))  # 0.9 as it is written: ceil(10 * 0.9) must be 9


def least_level(ladder: Sequence[tuple[float, Region]], truth: Region, goal: Goal) -> float:
    """A question's score: from this level on, up to 1, the region that is read holds enough."""
    failing = [level for level, region in ladder if not goal.holds(region, truth)]
    return math.nextafter(failing[-1], math.inf) if failing else 0.0


def fit_level(known: RegionDistribution, truths: Sequence[Region], goal: Goal) -> float:
    """The level of `expected_recall` that reaches the goal for exchangeable questions.

    Raises:
        UsageError: see :meth:`Goal.rank`.
    """
    rank = goal.rank(len(truths))
    scores = [least_level(ladder, truth, goal) for ladder, truth in zip(known.ladder(), truths, strict=True)]
    return sorted(scores)[rank - 1]


def scan(
    localizer: Localizer, samples: Sequence[Sample], batch: int, advance: Callable[[str, int], None]
) -> RegionDistribution:
    """The distribution of every question's region."""
    parts = []
    for start in range(0, len(samples), batch):
        some = samples[start : start + batch]
        parts.append(localizer.distribution([displayed(s) for s in some], [s.question for s in some]).p_BXYUV)
        advance("", len(some))
    return RegionDistribution(torch.cat(parts))


@dataclass(frozen=True)
class Row:
    """How good a read-out's regions are.

    Attributes:
        readout: its text.
        covered: share of the questions for which the goal's recall is reached.
        low, high: 95 % interval of that (Wilson's, for independent questions).
        scores: see :func:`~cropl.metrics.area.area_scores`.
        tokens: mean visual tokens that ILP keeps of LLaVA-1.5's 576 without a budget; the full region keeps them all.
        kinds: `covered` for each kind of question.
    """

    readout: str
    covered: float
    low: float
    high: float
    scores: dict[str, float]
    tokens: float
    kinds: dict[str, float]


def measure(readout: Readout, known: RegionDistribution, samples: Sequence[Sample], goal: Goal) -> Row:
    """Score the regions of one read-out."""
    regions, metric = known.read(readout), AreaRecall()
    metric.update(regions, [sample.region for sample in samples])
    held = [goal.holds(region, sample.region) for region, sample in zip(regions, samples, strict=True)]
    tokens = [
        (r1 - r0) * (c1 - c0)
        for region, sample in zip(regions, samples)
        for r0, r1, c0, c1 in [region_span(region, TokenGrid.padded_square(SIDE, sample.width, sample.height))]
    ]
    kinds = {
        kind: sum(mine) / len(mine)
        for kind in sorted({sample.kind for sample in samples} - {""})
        for mine in [[ok for ok, sample in zip(held, samples) if sample.kind == kind]]
    }
    low, high = wilson(sum(held), len(held))
    scores = {name: float(value) for name, value in metric.compute().items()}
    return Row(str(readout), sum(held) / len(held), low, high, scores, sum(tokens) / len(tokens), kinds)


def wilson(successes: int, n: int, confidence: float = 0.95) -> tuple[float, float]:
    """Wilson's interval of a binomial share."""
    z = NormalDist().inv_cdf(0.5 + confidence / 2)
    p, spread = successes / n, z * z / n
    middle = (p + spread / 2) / (1 + spread)
    half = z / (1 + spread) * math.sqrt(p * (1 - p) / n + spread / (4 * n))
    return max(0.0, middle - half), min(1.0, middle + half)


def calibrate(
    localizer: Localizer,
    calibration: Sequence[Sample],
    fresh: Sequence[Sample],
    goal: Goal,
    batch: int = 16,
    advance: Callable[[str, int], None] = lambda detail, count: None,
) -> dict[str, Any]:
    """Fit the level on one set of questions and check it on another, beside the other read-outs.

    Raises:
        UsageError: too few questions for the share, or a question that is in both sets.
    """
    rank = goal.rank(len(calibration))
    twice = {sample.key for sample in calibration} & {sample.key for sample in fresh}
    if twice:
        raise UsageError(
            f"calibrate: {len(twice)} questions, {min(twice)!r} among them, are in both sets: a check needs fresh ones"
        )
    known = scan(localizer, calibration, batch, advance)
    level = fit_level(known, [sample.region for sample in calibration], goal)
    fitted = Readout("expected_recall", level)
    seen = scan(localizer, fresh, batch, advance)
    listed: list[str | Readout] = [
        "greedy",
        "most_probable",
        localizer.readout,
        f"expected_recall:{goal.recall}",
        fitted,
    ]
    readouts = list(dict.fromkeys(Readout.parse(each) for each in listed))
    curves = {
        name: [asdict(measure(Readout(name, at), seen, fresh, goal)) for at in LEVELS]
        for name in ("expected_recall", "coverage")
    }
    n = len(calibration)
    return {
        "goal": asdict(goal),
        "n": n,
        "rank": rank,
        "readout": str(fitted),
        "level": level,
        "fresh": len(fresh),
        "true_share": sum(sample.region.area for sample in fresh) / (GRID * GRID * len(fresh)),
        "coverage_sd": math.sqrt(rank * (n + 1 - rank) / ((n + 1) ** 2 * (n + 2))),
        "rows": [asdict(measure(each, seen, fresh, goal)) for each in readouts],
        "curves": curves,
    }
