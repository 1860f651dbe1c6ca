"""The estimate of padding, against counting positions one by one."""

import numpy as np
import pytest

from cropl.data.padding import padding
from cropl.data.plan import lengths
from tests.data.test_plan import plan, table


def test_shares_are_what_counting_gives() -> None:
    reader = table(*[20] * 8)
    found = padding(reader, 32, 4)  # type: ignore[arg-type]
    length_N = np.maximum(1, lengths(reader).round())  # type: ignore[arg-type]
    used, positions = 0.0, 0.0
    for batch in plan(reader, global_batch=32).epoch(0):
        for first in range(0, 32, 4):
            part = length_N[batch[first : first + 4]]
            used, positions = used + part.sum(), positions + 4 * part.max()
    assert found.random == pytest.approx(1 - used / positions)
    assert 0 <= found.packed <= found.dealt < 0.3 * found.random


def test_equal_samples_need_no_padding() -> None:
    reader = table(8)
    reader.characters_N[:], reader.width_N[:] = 100, 640
    found = padding(reader, 4, 2)  # type: ignore[arg-type]
    assert (found.random, found.dealt, found.packed) == (0, 0, 0)
    with pytest.raises(ValueError, match="multiple"):
        padding(reader, 4, 3)  # type: ignore[arg-type]
