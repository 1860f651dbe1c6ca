"""The line through a soak's samples: what it calls flat, what it calls growth, and how sure it is."""

from __future__ import annotations

import random

import pytest

from tests.soak.fit import growth


def series(hourly: float, noise: float, start: float = 500, count: int = 120) -> list[dict[str, float]]:
    chance = random.Random(0)
    warming = [-200 + 40 * i for i in range(5)] + [0] * count
    return [
        {"seconds": 10.0 * i, "mb": start + hourly * 10 * i / 3600 + warming[i] + chance.gauss(0, noise)}
        for i in range(count)
    ]


def test_a_line_is_found_exactly() -> None:
    found = growth(series(36, 0), "mb")
    assert found.per_hour == pytest.approx(36) and found.interval == pytest.approx(0, abs=1e-6)
    assert found.start == pytest.approx(500 + 36 * 240 / 3600)
    assert found.change == pytest.approx(36 * 950 / 3600 / found.start) and found.flat


def test_growth_is_told_from_noise() -> None:
    quiet, leaking = growth(series(0, 5), "mb"), growth(series(100, 5), "mb")
    assert quiet.flat and not quiet.grows and abs(quiet.per_hour) < 2 * quiet.interval
    assert leaking.grows and not leaking.flat and abs(leaking.per_hour - 100) < 1.5 * leaking.interval
    shrinking = growth(series(-100, 5), "mb")
    assert not shrinking.flat and not shrinking.grows


def test_intervals_hold_the_slope_as_often_as_they_say() -> None:
    chance, inside = random.Random(1), 0
    for _ in range(200):
        made = [{"seconds": 10.0 * i, "mb": 50 + i / 36 + chance.gauss(0, 3)} for i in range(60)]
        found = growth(made, "mb")
        inside += abs(found.per_hour - 10) < found.interval
    assert 180 <= inside <= 199


def test_the_warm_up_does_not_count() -> None:
    cold = [{"seconds": 10.0 * i, "mb": 100 if i < 20 else 500.0} for i in range(101)]
    assert growth(cold, "mb").per_hour == 0
    cold[21]["mb"] = 700
    assert growth(cold, "mb").per_hour < 0


def test_samples_without_it_are_left_out_and_too_few_are_an_error() -> None:
    made: list[dict[str, float]] = [{"seconds": 10.0 * i, "mb": 5.0} for i in range(20)]
    made[12] = {"seconds": 120.0}
    assert growth(made, "mb").mean == 5 and growth([{**each, "fds": 0} for each in made], "fds").change == 0
    with pytest.raises(ValueError, match="mb: 5 samples"):
        growth(made[:6], "mb")
    with pytest.raises(ValueError, match="fds: 0 samples"):
        growth(made, "fds")


def test_the_most_of_a_block_leaves_out_what_comes_and_goes() -> None:
    def files(leak: int) -> list[dict[str, float]]:
        return [{"seconds": 10.0 * i, "fds": 25 + (i * i % 7 < 3) * 18 + leak * i // 30} for i in range(120)]

    assert growth(files(0), "fds", most=True).per_hour == 0
    assert growth(files(1), "fds", most=True).grows
