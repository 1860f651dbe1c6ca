"""Regions and token grids against a brute force in exact fractions."""

import copy
import math
import pickle
import random
import subprocess
import sys
from dataclasses import FrozenInstanceError
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from lightning_utilities.core.apply_func import apply_to_collection

from cropl.grid import GRID, Region, TokenGrid

blocks = st.integers(0, GRID - 1)
sides = st.integers(1, 3000)


@st.composite
def regions(draw: st.DrawFn) -> Region:
    (x0, x1), (y0, y1) = sorted([draw(blocks), draw(blocks)]), sorted([draw(blocks), draw(blocks)])
    return Region(x0, y0, x1, y1)


@st.composite
def grids(draw: st.DrawFn) -> TokenGrid:
    width, height = draw(sides), draw(sides)
    if draw(st.booleans()):
        return TokenGrid.padded_square(draw(st.integers(1, 30)), width, height)
    return TokenGrid.stretched(draw(st.integers(1, 30)), draw(st.integers(1, 30)), width, height)


def overlapped(grid: TokenGrid, region: Region, factor: Fraction) -> list[bool]:
    """Per token: does its cell share an area with the region, scaled about its centre and clamped to the image?"""
    x0, y0, x1, y1 = region.edges()
    cols = overlapped_axis(grid.cols, grid.left, grid.width, grid.image_width, x0, x1, factor)
    rows = overlapped_axis(grid.rows, grid.top, grid.height, grid.image_height, y0, y1, factor)
    return [row and col for row in rows for col in cols]


def overlapped_axis(count: int, start: int, size: int, image: int, lo: int, hi: int, factor: Fraction) -> list[bool]:
    middle, half = Fraction(lo + hi, 2 * GRID) * image, Fraction(hi - lo, 2 * GRID) * image * factor
    low, high = max(middle - half, Fraction(0)), min(middle + half, Fraction(image))
    cells = [(start + Fraction(i * size, count), start + Fraction((i + 1) * size, count)) for i in range(count)]
    return [min(b, high) > max(a, low) for a, b in cells]


@given(grids(), regions())
def test_span_is_every_token_that_overlaps(grid: TokenGrid, region: Region) -> None:
    r0, r1, c0, c1 = grid.span(region)
    assert 0 <= r0 < r1 <= grid.rows and 0 <= c0 < c1 <= grid.cols
    kept = [r0 <= i // grid.cols < r1 and c0 <= i % grid.cols < c1 for i in range(grid.num_tokens)]
    assert kept == overlapped(grid, region, Fraction(1))
    assert [reach < 1 for reach in grid.reach(region)] == kept


@given(grids(), regions(), st.integers(1, 64 * 20))
def test_reach_is_the_factor_beyond_which_a_token_is_kept(grid: TokenGrid, region: Region, sixtyfourths: int) -> None:
    factor = Fraction(sixtyfourths, 64)
    assert [reach < float(factor) for reach in grid.reach(region)] == overlapped(grid, region, factor)


@given(grids(), regions())
def test_reach_is_infinite_exactly_in_the_padding(grid: TokenGrid, region: Region) -> None:
    in_image = overlapped(grid, Region.full(), Fraction(1))
    assert [math.isfinite(reach) for reach in grid.reach(region)] == in_image
    assert all(math.isfinite(reach) for axis in grid.axis_reach(region, clamp=False) for reach in axis)


@given(sides, sides, regions())
def test_span_follows_the_published_map_of_the_padded_square(width: int, height: int, region: Region) -> None:
    size, side = max(width, height), 24
    ox, oy = (size - width) // 2, (size - height) // 2
    x0, x1 = Fraction(region.x_min * width, 8), Fraction((region.x_max + 1) * width, 8)
    y0, y1 = Fraction(region.y_min * height, 8), Fraction((region.y_max + 1) * height, 8)
    expected = (
        math.floor((y0 + oy) / size * side),
        math.ceil((y1 + oy) / size * side),
        math.floor((x0 + ox) / size * side),
        math.ceil((x1 + ox) / size * side),
    )
    assert TokenGrid.padded_square(side, width, height).span(region) == expected


def test_a_block_of_a_square_image_is_three_by_three_tokens() -> None:
    grid = TokenGrid.padded_square(24, 336, 336)
    assert grid.num_tokens == 576
    for x in range(GRID):
        for y in range(GRID):
            assert grid.span(Region(x, y, x, y)) == (3 * y, 3 * y + 3, 3 * x, 3 * x + 3)


@pytest.mark.parametrize(
    "bad", [(-1, 0, 1, 1), (0, 0, 8, 1), (3, 0, 2, 1), (0, 3, 1, 2), (0.0, 0, 1, 1), ("0", 0, 1, 1), (True, 0, 1, 1)]
)
def test_bad_regions_are_refused(bad: tuple) -> None:
    with pytest.raises(ValueError, match="region"):
        Region(*bad)


def test_integers_of_other_types_become_int() -> None:
    region = Region(*np.array([1, 2, 3, 4]))
    assert region == Region(1, 2, 3, 4) and all(type(value) is int for value in region.as_tuple())


def test_objects_are_immutable_and_hashable_and_survive_lightning() -> None:
    region, grid = Region(1, 2, 3, 4), TokenGrid.padded_square(24, 30, 20)
    for thing, field in ((region, "x_min"), (grid, "rows")):
        with pytest.raises(FrozenInstanceError):
            setattr(thing, field, 0)
        moved = apply_to_collection([{"thing": thing}], int, lambda number: number)
        assert moved == [{"thing": thing}] and pickle.loads(pickle.dumps(thing)) == thing
        assert {thing: 1}[copy.deepcopy(thing)] == 1
    assert region == Region(1, 2, 3, 4) and grid.rows == 24


def test_parse() -> None:
    assert Region.parse(" 1, 2,3 ,4 ") == Region(1, 2, 3, 4)
    for text in ("", "1,2,3", "1,2,3,4,5", "a,b,c,d", "1.0,2,3,4", "4,2,3,4", "1,2,3,9", "-1,0,1,1"):
        with pytest.raises(ValueError, match="region"):
            Region.parse(text)


box_numbers = st.one_of(st.integers(-50, 900), st.floats(-50, 900, width=32))


@given(st.lists(st.tuples(*[box_numbers] * 4), min_size=1, max_size=4), st.integers(1, 800), st.integers(1, 800))
def test_from_boxes_covers_exactly_the_touched_blocks(boxes: list, width: int, height: int) -> None:
    touched = set()
    for x0, y0, x1, y1 in boxes:
        (x0, x1), (y0, y1) = sorted([Fraction(x0), Fraction(x1)]), sorted([Fraction(y0), Fraction(y1)])
        for x in range(GRID):
            for y in range(GRID):
                left, right = Fraction(x * width, GRID), Fraction((x + 1) * width, GRID)
                top, bottom = Fraction(y * height, GRID), Fraction((y + 1) * height, GRID)
                if max(x0, left) < min(x1, right) and max(y0, top) < min(y1, bottom):
                    touched.add((x, y))
    if not touched:
        with pytest.raises(ValueError, match="no box"):
            Region.from_boxes(boxes, width, height)
        return
    region = Region.from_boxes(boxes, width, height)
    xs, ys = zip(*touched, strict=True)
    assert region == Region(min(xs), min(ys), max(xs), max(ys))


def test_from_boxes_errors() -> None:
    for boxes in (
        [(0, 0, float("nan"), 1)],
        [(0, 0, float("inf"), 1)],
        [(0, 0, 1)],
        [("0", 0, 1, 1)],
        [(None, 0, 1, 1)],
    ):
        with pytest.raises(ValueError, match="box"):
            Region.from_boxes(boxes, 10, 10)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="area"):
        Region.from_boxes([(0, 0, 1, 1)], 0, 10)
    assert Region.from_boxes([(5, 5, 5, 9), (0, 0, 10, 10)], 80, 80) == Region(0, 0, 0, 0)
    assert Region.from_boxes([np.array([10, 10, 20, 20], dtype=np.float32)], 80, 80) == Region(1, 1, 1, 1)


@given(regions(), regions())
def test_areas_against_sets_of_cells(a: Region, b: Region) -> None:
    cells_a, cells_b = set(a.cells()), set(b.cells())
    assert a.area == len(cells_a) == len(a.cells())
    assert a.intersection(b) == len(cells_a & cells_b)
    assert a.iou(b) == len(cells_a & cells_b) / len(cells_a | cells_b)
    assert a.recall_against(b) == len(cells_a & cells_b) / len(cells_b)


@given(regions(), st.integers())
def test_controls_keep_the_size(region: Region, seed: int) -> None:
    for other in (region.centered(), region.moved(random.Random(seed))):
        assert (other.width, other.height) == (region.width, region.height)
    centre = region.centered()
    assert 0 <= (GRID - 1 - centre.x_max) - centre.x_min <= 1 and 0 <= (GRID - 1 - centre.y_max) - centre.y_min <= 1


def test_random_positions_are_uniform() -> None:
    rng = random.Random(0)
    xs = [Region(0, 0, 5, 7).moved(rng).x_min for _ in range(3000)]
    assert set(xs) == {0, 1, 2} and all(900 < xs.count(x) < 1100 for x in (0, 1, 2))


@pytest.mark.parametrize(
    "window", [(0, 4, 4, 0, 0, 4, 4), (4, 4, 1, 0, 4, 4, 4), (4, 4, 0, 0, 3, 4, 4), (4, 4, 0, -1, 4, 4, 4)]
)
def test_windows_that_lose_a_part_of_the_image_are_refused(window: tuple) -> None:
    rows, cols, left, top, width, image_width, image_height = window
    with pytest.raises(ValueError, match="token"):
        TokenGrid(rows, cols, left, top, width, 4, image_width, image_height)


def test_importing_the_package_and_its_geometry_is_light() -> None:
    code = (
        "import sys, cropl, cropl.grid, cropl.prompt; print(sorted({'torch', 'lightning', 'numpy'} & set(sys.modules)))"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_public_names_are_lazy() -> None:
    import cropl

    assert cropl.Region is Region and "pruned" in dir(cropl)
    with pytest.raises(AttributeError, match="nothing"):
        cropl.nothing  # noqa: B018
