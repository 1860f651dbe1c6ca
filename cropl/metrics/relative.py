"""Relative accuracy (RelAcc, "Avg." of the paper's tables): how much of the dense model's score a method keeps.

100 * mean over benchmarks of score / baseline, unweighted, on full-precision scores, skipping cells that are missing.
This reproduces the averages of the paper's Tables 2, 3 and 5 to 8 within rounding.
"""

from collections.abc import Mapping


def relative_accuracy(scores: Mapping[str, float | None], baseline: Mapping[str, float | None]) -> float:
    """RelAcc in percent over the benchmarks that both have a score for.

    Raises:
        ValueError: no benchmark in common, or a baseline that is not positive.
    """
    ratios = []
    for name, score in scores.items():
        reference = baseline.get(name)
        if score is None or reference is None:
            continue
        if reference <= 0:
            raise ValueError(f"relative accuracy: the baseline of {name!r} is {reference}, must be positive")
        ratios.append(score / reference)
    if not ratios:
        raise ValueError(f"relative accuracy: no benchmark in common, scores of {list(scores)} and {list(baseline)}")
    return 100 * sum(ratios) / len(ratios)
