"""Bootstrap intervals against the normal approximation, and their determinism."""

import numpy as np
import pytest

from cropl.metrics.bootstrap import bootstrap_ci, paired_bootstrap_ci


def test_close_to_the_normal_approximation() -> None:
    values = (np.random.default_rng(0).random(800) < 0.3).astype(float)
    low, high = bootstrap_ci(values, n=4000)
    half = 1.96 * values.std() / np.sqrt(800)
    assert low == pytest.approx(values.mean() - half, abs=0.004)
    assert high == pytest.approx(values.mean() + half, abs=0.004)


def test_the_seed_decides_and_chunks_do_not(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(0).random(50)
    assert bootstrap_ci(values, seed=1) == bootstrap_ci(list(values), seed=1) != bootstrap_ci(values, seed=2)
    expected = bootstrap_ci(values, n=100)
    monkeypatch.setattr("cropl.metrics.bootstrap._CHUNK", 50 * 7)
    assert bootstrap_ci(values, n=100) == expected


def test_another_statistic_sees_the_same_draws() -> None:
    values = np.random.default_rng(0).exponential(size=21)
    drawn = values[np.random.default_rng(3).integers(0, 21, (500, 21))]
    low, high = np.quantile(np.median(drawn, axis=1), [0.025, 0.975])
    assert bootstrap_ci(values, n=500, seed=3, statistic=np.median) == (low, high)
    assert bootstrap_ci(values, n=500, seed=3, statistic=np.mean) == bootstrap_ci(values, n=500, seed=3) != (low, high)


def test_pairs_are_kept_together() -> None:
    rng = np.random.default_rng(0)
    hard = (rng.random(500) < 0.5).astype(float)
    better = np.where(rng.random(500) < 0.05, 1.0, hard)
    low, high = paired_bootstrap_ci(better, hard)
    assert 0 < low < (better - hard).mean() < high < 0.06
    assert paired_bootstrap_ci(hard, hard) == (0.0, 0.0)


@pytest.mark.parametrize("values", [[], [float("nan")], [[1.0]], [float("inf")]])
def test_bad_values_are_refused(values: list) -> None:
    with pytest.raises(ValueError, match="bootstrap"):
        bootstrap_ci(values)


def test_bad_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="level"):
        bootstrap_ci([1.0], level=1.0)
    with pytest.raises(ValueError, match="same questions"):
        paired_bootstrap_ci([1.0], [1.0, 2.0])
