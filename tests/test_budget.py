"""Budgets: the mean is met within one token on random sets, in both meanings, as counts and as shares."""

import json
import math
import random
from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cropl.budget import (
    InfeasibleBudget,
    apply_factor,
    calibrate,
    kept_for_layer_average,
    layer_average,
    per_image,
)
from cropl.grid import Region, TokenGrid


def random_set(seed: int, size: int, dynamic: bool, equal: bool) -> tuple[list[Region], list[TokenGrid]]:
    rng = random.Random(seed)
    regions, grids = [], []
    for _ in range(size):
        (x0, x1), (y0, y1) = (sorted(rng.choices(range(8), k=2)) for _ in "xy")
        width, height = rng.randint(40, 900), rng.randint(40, 900)
        regions.append(Region(x0, y0, x1, y1))
        if dynamic:
            grids.append(TokenGrid.stretched(rng.randint(2, 30), rng.randint(2, 30), width, height))
        else:
            grids.append(TokenGrid.padded_square(24, width, height))
    return ([regions[0]] * size, [grids[0]] * size) if equal else (regions, grids)


sets = st.builds(random_set, st.integers(0, 10**6), st.integers(1, 12), st.booleans(), st.booleans())


@settings(max_examples=150, deadline=None)
@given(sets, st.one_of(st.integers(1, 600), st.floats(0.001, 1.0)), st.integers(0, 6), st.booleans())
def test_the_mean_is_within_one_token(
    data: tuple[list[Region], list[TokenGrid]], budget: int | float, layer: int, averaged: bool
) -> None:
    regions, grids = data
    total = Fraction(sum(grid.num_tokens for grid in grids), len(grids))
    asked = Fraction(budget) * total if isinstance(budget, float) else Fraction(budget)
    target = (6 * asked - layer * total) / (6 - layer) if averaged and layer < 6 else asked
    meaning = {"meaning": "layer_average", "layer": layer, "num_layers": 6} if averaged else {}
    if asked > total or (averaged and layer == 6 and asked != total) or target < 1:
        with pytest.raises(ValueError, match=r"budget|average"):
            calibrate(regions, grids, budget, **meaning)  # type: ignore[arg-type]
        return
    result = calibrate(regions, grids, budget, **meaning)  # type: ignore[arg-type]
    counts = [int(mask.sum()) for mask in result.keep]
    assert [len(mask) for mask in result.keep] == [grid.num_tokens for grid in grids]
    assert min(counts) >= 1 and (result.min, result.max) == (min(counts), max(counts))
    assert result.mean == sum(counts) / len(counts)
    assert abs(result.mean - target) <= 1 + 1e-9
    assert result.residual == pytest.approx(result.mean - float(target), abs=1e-6)
    if averaged:
        assert abs(layer_average(result.mean, float(total), layer, 6) - asked) <= 1 + 1e-9
    if not result.tied:
        for mask, region, grid in zip(result.keep, regions, grids, strict=True):
            assert torch.equal(mask, apply_factor(region, grid, result.factor))
    json.dumps(result.as_row(), allow_nan=False)


@settings(deadline=None)
@given(sets, st.integers(1, 400))
def test_padding_is_kept_only_when_the_image_is_used_up(
    data: tuple[list[Region], list[TokenGrid]], budget: int
) -> None:
    regions, grids = data
    own = [sum(map(math.isfinite, grid.reach(region))) for region, grid in zip(regions, grids, strict=True)]
    if budget > sum(grid.num_tokens for grid in grids) / len(grids):
        return
    result = calibrate(regions, grids, budget)
    if budget * len(grids) <= sum(own):
        assert result.padding == 0
    else:
        for mask, region, grid in zip(result.keep, regions, grids, strict=True):
            reach = torch.tensor(grid.reach(region))
            assert result.residual <= 0 and bool(mask[reach.isfinite()].all())


def test_equal_regions_stay_equal_to_one_token() -> None:
    # 100 copies of one region: every reach is tied a hundredfold, and a whole ring would overshoot by far.
    regions, grids = [Region(3, 3, 4, 4)] * 100, [TokenGrid.padded_square(24, 100, 100)] * 100
    result = calibrate(regions, grids, 50)
    assert result.tied > 0 and result.min == result.max == 50 and result.residual == 0
    assert calibrate(regions, grids, 64).tied == 0  # 8 x 8 tokens is a whole ring


def test_the_factor_is_one_when_the_regions_already_fit() -> None:
    regions, grids = [Region(0, 0, 3, 3)] * 3, [TokenGrid.padded_square(24, 80, 80)] * 3
    result = calibrate(regions, grids, 144)
    assert all(torch.equal(mask, apply_factor(regions[0], grids[0], 1.0)) for mask in result.keep)
    assert calibrate(regions, grids, 576).mean == 576 and calibrate(regions, grids, 1.0).mean == 576


def test_a_full_budget_keeps_everything_padding_included() -> None:
    grids = [TokenGrid.padded_square(24, 100, 30), TokenGrid.padded_square(24, 50, 50)]
    result = calibrate([Region(1, 1, 2, 2)] * 2, grids, 576)
    assert all(bool(mask.all()) for mask in result.keep) and result.padding > 0 and math.isfinite(result.factor)


@settings(deadline=None)
@given(sets, st.one_of(st.integers(1, 576), st.floats(0.3, 1.0)))
def test_per_image_is_exact_nested_and_contains_no_needless_padding(
    data: tuple[list[Region], list[TokenGrid]], budget: int | float
) -> None:
    region, grid = data[0][0], data[1][0]
    if isinstance(budget, int) and budget > grid.num_tokens:
        with pytest.raises(ValueError, match="budget"):
            per_image(region, grid, budget)
        return
    keep_V = per_image(region, grid, budget)
    count = math.floor(budget * grid.num_tokens + 0.5) if isinstance(budget, float) else budget
    assert int(keep_V.sum()) == count
    if count > 1:
        assert not bool((per_image(region, grid, count - 1) & ~keep_V).any())
    reach_V = torch.tensor(grid.reach(region), dtype=torch.float64)
    assert float(reach_V[keep_V].max()) <= float(reach_V[~keep_V].min()) if count < grid.num_tokens else True


@pytest.mark.parametrize("budget", [0, -3, 577, 0.0, 1.5, 64.0, True, "64", None, float("nan"), float("inf")])
def test_bad_budgets_are_refused(budget: object) -> None:
    grid = TokenGrid.padded_square(24, 100, 80)
    with pytest.raises(ValueError, match="budget"):
        calibrate([Region.full()], [grid], budget)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="budget"):
        per_image(Region.full(), grid, budget)  # type: ignore[arg-type]


def test_bad_arguments_are_refused() -> None:
    grid = TokenGrid.padded_square(24, 100, 80)
    with pytest.raises(ValueError, match="one grid per region"):
        calibrate([Region.full()], [], 64)
    with pytest.raises(ValueError, match="at least one"):
        calibrate([], [], 64)
    with pytest.raises(ValueError, match="meaning"):
        calibrate([Region.full()], [grid], 64, meaning="mean")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layer"):
        calibrate([Region.full()], [grid], 64, meaning="layer_average")
    with pytest.raises(ValueError, match="outside"):
        calibrate([Region.full()], [grid], 64, meaning="layer_average", layer=7, num_layers=6)
    with pytest.raises(InfeasibleBudget, match="infeasible"):
        calibrate([Region.full()], [grid], 64, meaning="layer_average", layer=1, num_layers=6)
    for factor in (0.0, -1.0, math.inf, math.nan):
        with pytest.raises(ValueError, match="factor"):
            apply_factor(Region.full(), grid, factor)


@given(st.floats(1, 576), st.integers(0, 5))
def test_layer_average_and_its_inverse(kept: float, layer: int) -> None:
    average = layer_average(kept, 576, layer, 6)
    assert kept_for_layer_average(average, 576, layer, 6) == pytest.approx(kept)


def test_layer_average_by_hand() -> None:
    assert layer_average(64, 576, 2, 32) == 96  # (2*576 + 30*64) / 32
    assert layer_average(64, 576, 32, 32) == 576 and layer_average(64, 576, 0, 32) == 64
    assert kept_for_layer_average(576, 576, 32, 32) == 576
    with pytest.raises(InfeasibleBudget, match="K = L"):
        kept_for_layer_average(64, 576, 32, 32)
