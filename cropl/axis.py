"""Cells along one side of an image, and an interval of it: which cells it overlaps, and from which size on. Exact.

`count` cells of equal size lie over `size` units from `start` on; the image itself lies over 0 to `image` of the same
units, and the interval from `low` to `high` in eighths of the image. What is left of the image in front of the first
cell, or behind the last one, belongs to that cell: unpadding cuts at whole tokens, and a border must not be lost.

Positions are integers over the common denominator 8 * count, so touching edges never count as an overlap and no
rounding is involved.
"""

import math

GRID = 8
"""Blocks per side of the region grid (paper, section 3.2)."""

Line = tuple[int, int, int, int, int, int]
"""`(count, start, size, image, low, high)`, what the functions below take."""


def span(count: int, start: int, size: int, image: int, low: int, high: int) -> tuple[int, int]:
    """The half-open range of cells that overlap the interval; never empty."""
    # Cell i covers [start + i*size/count, start + (i+1)*size/count], the interval [low, high]*image/GRID.
    # Times GRID*count: strict overlap is  first + i*step < end  and  first + (i+1)*step > begin.
    first, step = GRID * start * count, GRID * size
    begin, end = low * image * count, high * image * count
    return min(max((begin - first) // step, 0), count - 1), max(min(-((first - end) // step), count), 1)


def reach(count: int, start: int, size: int, image: int, low: int, high: int, clamp: bool) -> list[float]:
    """For each cell the factor beyond which the interval, scaled about its middle, overlaps it.

    With `clamp` the interval never leaves the image: cells wholly outside of it have `math.inf`.
    """
    # With middle c and half width h, the cell [a, b] is overlapped at factor f iff f > (a - c)/h and f > (c - b)/h.
    # Doubling gives integers; int/int division is correctly rounded and the denominator is far below 2**53, so the
    # quotient compares with 1 (and with equal quotients) exactly as the fraction does.
    begin, end, total = low * image * count, high * image * count, GRID * image * count
    values = []
    for i in range(count):
        a, b = _cell(count, start, size, total, i)
        if clamp and (b <= 0 or a >= total):
            values.append(math.inf)
        else:
            values.append(max(2 * a - begin - end, begin + end - 2 * b) / (end - begin))
    return values


def offsets(count: int, start: int, size: int, image: int, low: int, high: int) -> list[float]:
    """From the middle of the interval to that of each cell, in cells."""
    middle = count * image * (low + high)
    return [(GRID * ((2 * i + 1) * size + 2 * start * count) - middle) / size / (2 * GRID) for i in range(count)]


def _cell(count: int, start: int, size: int, total: int, i: int) -> tuple[int, int]:
    a, b = GRID * (start * count + i * size), GRID * (start * count + (i + 1) * size)
    return (min(a, 0) if i == 0 else a), (max(b, total) if i == count - 1 else b)
