"""Percentile bootstrap intervals over questions: how far a score would move on another draw of the questions.

The paired form resamples questions, not answers, so that the difference of two methods on the same questions has the
narrow interval that it deserves.
"""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

_CHUNK = 1 << 22  # resampled values held at a time


def bootstrap_ci(
    values: Sequence[float] | npt.NDArray[np.floating],
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
    statistic: Callable[..., Any] = np.mean,
) -> tuple[float, float]:
    """The interval `(low, high)` of a statistic of per-question scores, their mean unless another is named.

    Args:
        values: one score per question.
        n: number of resamples.
        seed: of the resamples; the same seed gives the same interval, and every statistic sees the same draws.
        level: share of the resampled statistics inside the interval.
        statistic: of numbers along an axis, as in NumPy: `np.mean`, `np.median`.

    Raises:
        ValueError: no values, or one that is not finite, or a level outside (0, 1).
    """
    if not 0 < level < 1:
        raise ValueError(f"bootstrap: level {level!r} must lie in (0, 1)")
    drawn = resampled(values, n, seed, statistic)
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def resampled(
    values: Sequence[float] | npt.NDArray[np.floating],
    n: int = 2000,
    seed: int = 0,
    statistic: Callable[..., Any] = np.mean,
) -> npt.NDArray[np.float64]:
    """The statistic of each of `n` resamples; arguments and errors are those of `bootstrap_ci`."""
    scores = np.asarray(values, dtype=np.float64)
    if scores.ndim != 1 or not scores.size or not np.isfinite(scores).all():
        raise ValueError(f"bootstrap needs a list of finite scores, one per question; got shape {scores.shape}")
    if n < 1:
        raise ValueError(f"bootstrap: n={n!r} must be at least 1")
    rng = np.random.default_rng(seed)
    rows = max(1, _CHUNK // scores.size)
    return np.concatenate(
        [
            statistic(scores[rng.integers(0, scores.size, (min(rows, n - start), scores.size))], axis=1)
            for start in range(0, n, rows)
        ]
    )


def paired_bootstrap_ci(
    a: Sequence[float] | npt.NDArray[np.floating],
    b: Sequence[float] | npt.NDArray[np.floating],
    n: int = 2000,
    seed: int = 0,
    level: float = 0.95,
) -> tuple[float, float]:
    """The interval of mean(a) - mean(b) for two methods' scores on the same questions, in the same order.

    Raises:
        ValueError: the lists differ in length, and as for `bootstrap_ci`.
    """
    first, second = np.asarray(a, dtype=np.float64), np.asarray(b, dtype=np.float64)
    if first.shape != second.shape:
        raise ValueError(f"paired bootstrap needs scores of the same questions: {first.shape} and {second.shape}")
    return bootstrap_ci(first - second, n, seed, level)
