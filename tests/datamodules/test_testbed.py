"""Evaluation batches visit every sample once over any number of processes, with equal steps and marked padding."""

from __future__ import annotations

import pytest

from cropl.datamodules.testbed import MarkedBatches


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 7, 16, 33])
def test_every_sample_once_and_equal_steps(world, count):
    ranks = [list(MarkedBatches(list(range(count)), 4, rank, world)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    assert all(len(b["samples"]) == 4 == len(b["valid"]) for batches in ranks for b in batches)
    seen = [s for batches in ranks for b in batches for s, ok in zip(b["samples"], b["valid"]) if ok]
    assert sorted(seen) == list(range(count))
