"""The stream: reads what the plan says, in order, for any workers, and leaves out only what it tells."""

import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cropl.data.manifest import ShardError
from cropl.data.plan import evaluation_batches
from cropl.data.sample import Sample
from cropl.data.shards import ShardReader
from cropl.data.stream import SampleStream, StartMethod, StreamLoader

Write = Callable[..., Path]


def keys(batch: list[Sample]) -> list[str]:
    return [sample.key for sample in batch]


@pytest.fixture
def reader(write_shards: Write) -> ShardReader:
    return ShardReader(write_shards())


def loader(reader: ShardReader, batches: list[list[int]], workers: int = 0, **options: object) -> StreamLoader:
    stream = SampleStream(reader, np.array(batches), collate=collate_with_process, skip_bad=True)
    return StreamLoader(lambda: stream, len(batches), workers, **options)  # type: ignore[arg-type]


def collate_with_process(samples: list[Sample]) -> tuple[list[tuple[str, bool]], int]:
    return [(sample.key, sample.valid) for sample in samples], os.getpid()


def test_evaluation_marks_what_it_repeats(reader: ShardReader) -> None:
    batches = [delivery.batch for delivery in SampleStream(reader, *evaluation_batches(len(reader), 4))]
    assert [sample.valid for sample in batches[-1]] == [True, True, False, False]
    assert all(sample.valid for batch in batches[:-1] for sample in batch)
    assert [key for batch in batches for key in keys(batch)][:10] == [f"s{i:04d}" for i in range(10)]


@pytest.mark.parametrize(
    ("workers", "method"),
    [(1, "fork"), (2, "fork"), (2, "forkserver"), pytest.param(3, "spawn", marks=pytest.mark.slow)],
)
def test_workers_do_not_change_the_stream(reader: ShardReader, workers: int, method: StartMethod) -> None:
    batches = [[3, 1], [0, 9], [9, 2], [4, 4], [7, 5]]
    found = list(loader(reader, batches, workers, start_method=method))
    assert [batch for batch, _ in found] == [[(f"s{i:04d}", True) for i in batch] for batch in batches]
    assert len({pid for _, pid in found}) == workers
    assert len(loader(reader, batches)) == 5


def damage(reader: ShardReader, index: int) -> None:
    """Overwrite the middle of a sample's image; sizes stay."""
    offset, size = reader._span_N4[index, :2]
    path = Path(reader.record(index)["__url__"])
    data = bytearray(path.read_bytes())
    data[offset + 10 : offset + size - 4] = bytes(size - 14)
    path.write_bytes(data)


@pytest.mark.parametrize("workers", [0, 2])
def test_a_damaged_sample_is_left_out_and_moves_nothing(reader: ShardReader, workers: int) -> None:
    damage(reader, 5)
    made = loader(reader, [[3, 5], [5, 6], [0, 1]], workers, max_skipped=2)
    assert [batch for batch, _ in made] == [
        [("s0003", True), ("s0003", False)],
        [("s0006", False), ("s0006", True)],
        [("s0000", True), ("s0001", True)],
    ]
    assert made.skipped == 2


def test_too_many_damaged_samples_are_an_error(reader: ShardReader) -> None:
    damage(reader, 5)
    made = loader(reader, [[3, 5], [5, 6], [0, 1]], max_skipped=1)
    with pytest.raises(ShardError, match=r"2 samples .* more than the 1 .*s0005"):
        list(made)
    with pytest.raises(ShardError, match="none of 2 samples can be decoded"):
        list(loader(reader, [[5, 5]], max_skipped=9))


def test_a_batch_of_damaged_samples_alone_borrows_one(reader: ShardReader) -> None:
    damage(reader, 5)
    damage(reader, 2)
    batches = [batch for batch, _ in loader(reader, [[5], [2], [3]], max_skipped=2)]
    assert batches == [[("s0003", False)], [("s0003", False)], [("s0003", True)]]


def test_evaluation_leaves_nothing_out(reader: ShardReader) -> None:
    damage(reader, 5)
    stream = SampleStream(reader, *evaluation_batches(len(reader), 4))
    with pytest.raises(ShardError, match="s0005"):
        list(StreamLoader(lambda: stream, len(stream)))
