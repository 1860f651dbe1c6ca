"""A training killed at random continues exactly: the same samples, the same losses, the same weights."""

from pathlib import Path

import pytest

from tests.attacks.kills import check


@pytest.mark.parametrize(
    ("worlds", "workers"),
    [([1], 2), ([2], 0), ([2, 1], 0), pytest.param([2], 1, marks=pytest.mark.slow)],
    ids=["one-rank", "two-ranks", "both-by-turns", "two-ranks-with-workers"],
)
@pytest.mark.parametrize("kills", [3, pytest.param(20, marks=pytest.mark.slow)])
def test_a_killed_training_continues_exactly(tmp_path: Path, worlds: list[int], workers: int, kills: int) -> None:
    check(tmp_path, worlds, kills, workers)
