"""The stream: complete, disjoint over ranks, a pure function of (seed, epoch), and the same for any workers."""

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cropl.data.manifest import Entry, Manifest, Shard
from cropl.data.sample import Sample
from cropl.data.shards import ShardReader
from cropl.data.stream import WINDOW, SampleStream, StreamLoader, epoch_order

Write = Callable[..., Path]


def manifest_of(*sizes: int) -> Manifest:
    entry = Entry("k", "png", 0, 1, 1, 1, 1, 1, 1)
    return Manifest(tuple(Shard(f"{i}.tar", 9, "", (entry,) * size) for i, size in enumerate(sizes)))


def keys(batch: list[Sample]) -> list[str]:
    return [sample.key for sample in batch]


@given(st.lists(st.integers(0, 6), max_size=30), st.integers(), st.integers(0, 5))
def test_an_order_is_a_permutation_and_pure(sizes: list[int], seed: int, epoch: int) -> None:
    manifest = manifest_of(*sizes)
    order = epoch_order(manifest, seed, epoch)
    assert sorted(order) == list(range(sum(sizes)))
    assert order == epoch_order(manifest, seed, epoch)


def test_orders_differ_by_seed_and_epoch_and_mix_only_within_windows() -> None:
    manifest = manifest_of(*[10] * (2 * WINDOW))
    orders = [tuple(epoch_order(manifest, seed, epoch)) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    first = {index // 10 for index in orders[0][: 10 * WINDOW]}
    assert len(first) == WINDOW  # these shards and no others are open at a time


def test_the_order_is_frozen() -> None:
    # A saved position is a position in this order: if this fails, raise ORDER_VERSION.
    assert epoch_order(manifest_of(3, 2, 4), seed=7, epoch=1) == FROZEN


FROZEN = [4, 7, 3, 2, 6, 1, 8, 0, 5]


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from([1, 2, 3, 4]), st.integers(1, 4), st.integers(0, 3))
def test_every_sample_once_on_any_world(reader: ShardReader, world: int, share: int, epoch: int) -> None:
    batch = world * share
    for training in (True, False):
        streams = [
            SampleStream(reader, batch, rank, world, seed=3 if training else None, epoch=epoch, training=training)
            for rank in range(world)
        ]
        steps = [list(stream.batches()) for stream in streams]
        assert {len(step) for step in steps} == {len(streams[0])} == {-(-10 // batch)}
        counted = Counter(index for rank in steps for part in rank for index, valid in part if valid)
        if training:
            assert set(counted) == set(range(10)) and sum(counted.values()) == len(streams[0]) * batch
        else:
            assert counted == Counter(range(10))
        # The global batches are those of a single process.
        alone = list(SampleStream(reader, batch, seed=streams[0].seed, epoch=epoch, training=training).batches())
        assert [[pair for rank in step for pair in rank] for step in zip(*steps, strict=True)] == alone


@pytest.fixture
def reader(write_shards: Write) -> ShardReader:
    return ShardReader(write_shards())


def test_a_stream_continues_where_it_is_told(reader: ShardReader) -> None:
    whole = [keys(batch) for batch in SampleStream(reader, 3, seed=1, epoch=2)]
    rest = [keys(batch) for batch in SampleStream(reader, 3, seed=1, epoch=2, start=2)]
    assert rest == whole[2:] and len(whole) == 4


def test_evaluation_marks_what_it_repeats(reader: ShardReader) -> None:
    batches = list(SampleStream(reader, 4, training=False))
    assert [sample.valid for sample in batches[-1]] == [True, True, False, False]
    assert all(sample.valid for batch in batches[:-1] for sample in batch)
    assert [key for batch in batches for key in keys(batch)][:10] == [f"s{i:04d}" for i in range(10)]


def collate_with_process(samples: list[Sample]) -> tuple[list[str], int]:
    return keys(samples), os.getpid()


@pytest.mark.parametrize(
    ("workers", "context"), [(1, "fork"), (2, "fork"), pytest.param(3, "forkserver", marks=pytest.mark.slow)]
)
def test_workers_do_not_change_the_stream(reader: ShardReader, workers: int, context: str) -> None:
    def open_stream() -> SampleStream:
        return SampleStream(reader, 2, 1, 2, seed=5, start=1, collate=collate_with_process)

    alone = [batch for batch, _ in StreamLoader(open_stream)]
    found = list(StreamLoader(open_stream, workers, context))
    assert [batch for batch, _ in found] == alone and len(alone) == 4
    assert len({pid for _, pid in found}) == workers
    assert len(StreamLoader(open_stream)) == 5  # a whole epoch


def test_bad_arguments_are_refused(reader: ShardReader) -> None:
    with pytest.raises(ValueError, match="multiple of the 2"):
        SampleStream(reader, 3, 0, 2)
    with pytest.raises(ValueError, match="rank 2"):
        SampleStream(reader, 4, 2, 2)
