"""Token maps and unions of regions against a brute force in exact fractions; budgets on both."""

from __future__ import annotations

import math
import pickle
import subprocess
import sys
from fractions import Fraction

import pytest
import torch
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st
from lightning_utilities.core.apply_func import apply_to_collection

from cropl.budget import apply_factor, calibrate, per_image
from cropl.grid import GRID, Region, TokenGrid
from cropl.tiling import TileGrid, TokenMap, as_record, covered, distance, finest, from_record, members, reach
from tests.test_grid import regions

unions = st.lists(regions(), min_size=1, max_size=3)


@st.composite
def tile_grids(draw: st.DrawFn) -> TileGrid:
    """Rows of tokens with newlines, or tiles, over a window that misses up to a token of the image or has padding."""
    if draw(st.booleans()):
        side, down, right = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 3))
        size = draw(st.integers(1, 60)), draw(st.integers(1, 60))
        return TileGrid(down * side, right * side, 0, 0, *size, *size, tile=side)
    rows, cols, token = draw(st.integers(1, 9)), draw(st.integers(1, 9)), draw(st.integers(1, 14))
    lost = [draw(st.integers(-token, token - 1)) for _ in range(4)]  # at each side; padding where negative
    width, height = cols * token + lost[0] + lost[1], rows * token + lost[2] + lost[3]
    assume(min(width, height) > 0)
    return TileGrid(rows, cols, lost[0], lost[2], cols * token, rows * token, width, height, draw(st.booleans()))


@st.composite
def maps(draw: st.DrawFn) -> TokenMap:
    width, height = draw(st.integers(1, 900)), draw(st.integers(1, 900))
    side = draw(st.integers(1, 6))
    base, tiles = TokenGrid.stretched(side, side, width, height), draw(tile_grids())
    return TokenMap((base, tiles) if draw(st.booleans()) else (tiles, base), width, height, 5)


def shown(grid: TokenGrid, region: Region, factor: Fraction) -> list[list[bool]]:
    """Row by row: does a cell, reaching to the image's end at a border, share an area with the scaled region?"""
    x0, y0, x1, y1 = region.edges()
    cols = along(grid.cols, grid.left, grid.width, grid.image_width, x0, x1, factor)
    rows = along(grid.rows, grid.top, grid.height, grid.image_height, y0, y1, factor)
    return [[row and col for col in cols] for row in rows]


def along(count: int, start: int, size: int, image: int, lo: int, hi: int, factor: Fraction) -> list[bool]:
    middle, half = Fraction(lo + hi, 2 * GRID) * image, Fraction(hi - lo, 2 * GRID) * image * factor
    low, high = max(middle - half, Fraction(0)), min(middle + half, Fraction(image))
    edges = [start + Fraction(i * size, count) for i in range(count + 1)]
    edges[0], edges[-1] = min(edges[0], Fraction(0)), max(edges[-1], Fraction(image))
    return [min(b, high) > max(a, low) for a, b in zip(edges, edges[1:])]


def expected(tokens: TokenGrid | TokenMap, regions: list[Region], factor: Fraction) -> list[bool]:
    """Per token, in the model's order."""
    if isinstance(tokens, TokenMap):
        return [kept for grid in tokens.grids for kept in expected(grid, regions, factor)]
    tables = [shown(tokens, region, factor) for region in regions]
    table = [[any(t[r][c] for t in tables) for c in range(tokens.cols)] for r in range(tokens.rows)]
    if not isinstance(tokens, TileGrid):
        return sum(table, [])
    if tokens.newline:
        return sum(([*row, any(row)] for row in table), [])
    side = tokens.tile or max(tokens.rows, tokens.cols)
    listed = []
    for top in range(0, tokens.rows, side):
        for left in range(0, tokens.cols, side):
            listed += [kept for row in table[top : top + side] for kept in row[left : left + side]]
    return listed


@given(maps(), unions)
def test_a_union_covers_what_any_member_overlaps_and_never_nothing(tokens: TokenMap, union: list[Region]) -> None:
    kept = covered(tokens, union)
    assert len(kept) == tokens.num_tokens and any(kept)
    whole = Region.full() in union
    assert kept == ([True] * tokens.num_tokens if whole else expected(tokens, union, Fraction(1)))
    for grid, part in zip(tokens.grids, parts(tokens, kept), strict=True):
        assert any(part), f"a region leaves nothing of {grid}"
    assert covered(tokens, union[0]) == covered(tokens, [union[0], union[0]])


@given(maps(), unions, st.integers(1, 64 * 20))
def test_reach_is_the_factor_beyond_which_a_token_is_kept(tokens: TokenMap, union: list[Region], parts: int) -> None:
    factor = Fraction(parts, 64)
    assert [value < float(factor) for value in reach(tokens, union)] == expected(tokens, union, factor)
    assert all(map(math.isfinite, reach(tokens, union, clamp=False)))
    assert torch.equal(apply_factor(union, tokens, float(factor)), torch.tensor(expected(tokens, union, factor)))


@given(maps(), unions)
def test_least_of_the_members(tokens: TokenMap, union: list[Region]) -> None:
    for of in (reach, distance):
        assert of(tokens, union) == [min(values) for values in zip(*(of(tokens, region) for region in union))]


@given(tile_grids(), regions())
def test_distance_and_reach_in_order(grid: TileGrid, region: Region) -> None:
    x0, y0, x1, y1 = region.edges()
    middle = Fraction(x0 + x1, 16) * grid.image_width, Fraction(y0 + y1, 16) * grid.image_height
    plain = [
        [
            (Fraction(2 * r + 1, 2) - (middle[1] - grid.top) * grid.rows / grid.height) ** 2
            + (Fraction(2 * c + 1, 2) - (middle[0] - grid.left) * grid.cols / grid.width) ** 2
            for c in range(grid.cols)
        ]
        for r in range(grid.rows)
    ]
    listed = grid.order()
    assert sorted(place for place in listed if place is not None) == list(range(grid.rows * grid.cols))
    newlines = iter(map(min, plain))
    flat = sum(plain, [])
    found = [next(newlines) if place is None else flat[place] for place in listed]
    assert distance(grid, region) == pytest.approx([float(value) for value in found], abs=1e-9)


def parts(tokens: TokenMap, kept: list[bool]) -> list[list[bool]]:
    cut, start = [], 0
    for grid in tokens.grids:
        cut.append(kept[start : start + grid.num_tokens])
        start += grid.num_tokens
    return cut


def lost_newlines(tokens: TokenMap, kept: list[bool]) -> int:
    """Newlines that are gone though their row keeps a token; a newline without its row is an error."""
    lost = 0
    for grid, part in zip(tokens.grids, parts(tokens, kept), strict=True):
        if isinstance(grid, TileGrid) and grid.newline:
            rows = [part[i : i + grid.cols + 1] for i in range(0, len(part), grid.cols + 1)]
            assert not any(row[-1] and not any(row[:-1]) for row in rows)
            lost += sum(any(row[:-1]) and not row[-1] for row in rows)
    return lost


@settings(deadline=None)
@given(maps(), unions, st.integers(1, 150))
def test_per_image_is_exact_and_nested_and_parts_at_most_one_newline(
    tokens: TokenMap, union: list[Region], count: int
) -> None:
    count = min(count, tokens.num_tokens)
    keep_V = per_image(union, tokens, count)
    assert int(keep_V.sum()) == count and lost_newlines(tokens, keep_V.tolist()) <= 1
    assert not bool((per_image(union, tokens, max(1, count - 1)) & ~keep_V).any())


TWICE = TokenMap((TileGrid(2, 4, 0, 0, 4, 2, 4, 2, newline=True), TokenGrid(1, 1, 0, 0, 1, 1, 1, 1)), 1, 1)
"""Two rows with newlines, and one token over all of it."""

CENTRED = TokenMap((TileGrid(1, 2, 0, 0, 1, 1, 1, 1, tile=1), TokenGrid(1, 1, 0, 0, 1, 1, 1, 1)), 1, 1)
"""Three tokens that lie over the centres of regions in the first and in all other columns."""


@settings(deadline=None)
@given(st.lists(st.tuples(unions, maps()), min_size=1, max_size=4), st.floats(0.1, 1.0))
@example([([Region(0, 0, 0, 0), Region(1, 0, 7, 0)], CENTRED)], 0.75)  # no reach is above 0
@example([([Region(0, 0, 0, 0), Region(0, 0, 4, 1)], TWICE)], 0.125)  # least reach and least distance of two tokens
def test_calibrated_sets(data: list[tuple[list[Region], TokenMap]], share: float) -> None:
    sets, grids = [union for union, _ in data], [tokens for _, tokens in data]
    if share * sum(tokens.num_tokens for tokens in grids) / len(grids) < 1:
        return
    result = calibrate(sets, grids, share)
    assert abs(result.residual) <= 1 + 1e-9 and result.min >= 1
    for union, tokens, keep_V in zip(sets, grids, result.keep, strict=True):
        assert lost_newlines(tokens, keep_V.tolist()) <= bool(result.tied)
        if not result.tied:
            assert torch.equal(keep_V, apply_factor(union, tokens, result.factor))


@given(maps())
def test_maps_survive_json_pickle_and_lightning(tokens: TokenMap) -> None:
    assert from_record(as_record(tokens)) == tokens == pickle.loads(pickle.dumps(tokens))
    assert all(from_record(as_record(grid)) == grid for grid in tokens.grids)
    assert apply_to_collection([tokens], int, lambda number: number) == [tokens]
    assert len({tokens, from_record(as_record(tokens))}) == 1


@given(maps(), regions())
def test_the_finest_grid_knows_its_tokens(tokens: TokenMap, region: Region) -> None:
    grid, places = finest(tokens)
    assert grid.num_tokens == max(one.num_tokens for one in tokens.grids)
    values = reach(tokens, region)
    assert [values[place] for place in places] == TokenGrid.reach(grid, region)
    plain = TokenGrid.padded_square(4, 30, 20)
    assert finest(plain) == (plain, list(range(16)))


@pytest.mark.parametrize("bad", [[], [Region.full(), None], "0,0,1,1", 3, [[Region.full()]]])
def test_what_is_no_union(bad: object) -> None:
    with pytest.raises(ValueError, match="give a Region, or a sequence"):
        members(bad)  # type: ignore[arg-type]


def test_bad_grids() -> None:
    with pytest.raises(ValueError, match="at least one grid"):
        TokenMap((), 1, 1)
    with pytest.raises(ValueError, match="do not make up"):
        TileGrid(4, 6, 0, 0, 6, 4, 6, 4, tile=4)
    with pytest.raises(ValueError, match="do not make up"):
        TileGrid(4, 4, 0, 0, 4, 4, 4, 4, newline=True, tile=4)
    with pytest.raises(ValueError, match="does not cover"):
        TileGrid(2, 2, 14, 0, 28, 28, 42, 28)
    assert TileGrid(2, 2, 13, 0, 28, 28, 54, 28).num_tokens == 4


def test_importing_is_light() -> None:
    code = "import sys, cropl.tiling; print(sorted({'torch', 'lightning', 'numpy'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"
