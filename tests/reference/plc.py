"""PLC's equations 2-5 with loops, in float64, one image and one number at a time: what the module is compared with."""

from __future__ import annotations

import math

import numpy as np

Array = np.ndarray


def encoding(row: float, col: float, width: int) -> Array:
    """Sines then cosines of the row, then of the column; wavelengths from 2 pi to 10,000 times that."""
    values = []
    for position in (row, col):
        angles = [position / 10000 ** (i / (width // 4)) for i in range(width // 4)]
        values += [math.sin(angle) for angle in angles] + [math.cos(angle) for angle in angles]
    return np.array(values)


def attend(queries: list[Array], keys: list[Array]) -> list[Array]:
    """softmax(q . k / sqrt(width)) k for each query."""
    out = []
    for query in queries:
        scores = [float(query @ key) / math.sqrt(len(key)) for key in keys]
        weights = [math.exp(score - max(scores)) for score in scores]
        out.append(sum(w * key for w, key in zip(weights, keys, strict=True)) / sum(weights))
    return out


def window(first: int, end: int, count: int) -> range:
    """Eight tokens (or all) around the middle of `first`..`end`, shifted inside the grid."""
    size = min(8, count)
    start = math.floor((first + end - size) / 2)
    return range(min(max(start, 0), count - size), min(max(start, 0), count - size) + size)


def compress(
    x: Array,
    shape: tuple[int, int],
    span: tuple[int, int, int, int],
    inner: tuple[Array, Array | None],
    outer: tuple[Array, Array | None],
    anchors: bool,
    positions: bool,
    unit: float,
) -> Array:
    """Tokens (V, D) of one image to (M, D).

    Args:
        shape: rows and columns of tokens.
        span: half-open rows and columns of the region.
        inner, outer: learned queries and their learned encodings.
    """
    rows, cols = shape
    x = x / unit
    r0, r1, c0, c1 = span
    token = {}
    raw = {}
    for row in range(rows):
        for col in range(cols):
            raw[row, col] = x[row * cols + col]
            token[row, col] = raw[row, col] + (encoding(row, col, x.shape[1]) if positions else 0)
    inside = [place for place in token if r0 <= place[0] < r1 and c0 <= place[1] < c1]
    outside = [place for place in token if place not in inside] or list(token)
    queries = [q + (0 if inner[1] is None else inner[1][i]) for i, q in enumerate(inner[0])]
    others = [q + (0 if outer[1] is None else outer[1][i]) for i, q in enumerate(outer[0])]
    kv = attend(queries, [token[place] for place in inside])
    nkv = attend(others, [token[place] for place in outside])
    if anchors:
        encoded = [value + (0 if inner[1] is None else inner[1][i]) for i, value in enumerate(kv)]
        places = [(row, col) for row in window(r0, r1, rows) for col in window(c0, c1, cols)]
        fused = attend([token[place] for place in places], encoded)
        kv = [value + raw[place] for value, place in zip(fused, places, strict=True)]
    return unit * np.stack([*kv, *nkv])
