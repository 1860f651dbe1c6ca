"""RelAcc against a row of the paper."""

import pytest

from cropl.metrics.relative import relative_accuracy


def test_mean_of_ratios_and_missing_cells() -> None:
    baseline = {"gqa": 60.0, "mme": 1800.0, "pope": 80.0}
    assert relative_accuracy({"gqa": 30.0, "mme": 1800.0, "pope": None}, baseline) == pytest.approx(75.0)
    assert relative_accuracy(baseline, baseline) == pytest.approx(100.0)


def test_bad_input_is_refused() -> None:
    with pytest.raises(ValueError, match="in common"):
        relative_accuracy({"gqa": 1.0}, {"mme": 1.0})
    with pytest.raises(ValueError, match="'gqa' is 0"):
        relative_accuracy({"gqa": 1.0}, {"gqa": 0})
