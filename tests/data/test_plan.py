"""The plan: every sample once, a pure function of (seed, epoch), weights that are exact, and the same for any world."""

from collections import Counter
from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cropl.data.plan import WINDOW, Plan, epoch_order, evaluation_batches, lengths


@dataclass
class Table:
    """What a plan reads of a shard reader."""

    size_K: np.ndarray
    source_N: np.ndarray
    characters_N: np.ndarray
    width_N: np.ndarray
    sources: list[str] = field(default_factory=lambda: ["a", "b"])

    def __len__(self) -> int:
        return len(self.source_N)


def table(*sizes: int, seed: int = 0) -> Table:
    random = np.random.default_rng(seed)
    count = sum(sizes)
    return Table(
        np.array(sizes, dtype=np.int64),
        random.integers(0, 2, count),
        random.integers(1, 4000, count),
        random.integers(0, 2, count) * 640,
    )


def plan(reader: Table, **options: object) -> Plan:
    return Plan(reader, **{"global_batch": 4, **options})  # type: ignore[arg-type]


sizes = st.lists(st.integers(1, 6), min_size=1, max_size=30)


@given(sizes, st.integers(), st.integers(0, 5))
def test_an_order_is_a_permutation_and_pure(sizes: list[int], seed: int, epoch: int) -> None:
    order = epoch_order(np.array(sizes), seed, epoch)
    assert sorted(order.tolist()) == list(range(sum(sizes)))
    assert order.tolist() == epoch_order(np.array(sizes), seed, epoch).tolist()


def test_orders_differ_by_seed_and_epoch_and_mix_only_within_windows() -> None:
    size_K = np.full(2 * WINDOW, 10)
    orders = [tuple(epoch_order(size_K, seed, epoch).tolist()) for seed in (0, 1) for epoch in (0, 1)]
    assert len(set(orders)) == 4
    first = {index // 10 for index in orders[0][: 10 * WINDOW]}
    assert len(first) == WINDOW  # these shards and no others are open at a time


def test_the_order_is_frozen() -> None:
    # A saved position is a position in this order: if this fails, raise ORDER_VERSION.
    assert epoch_order(np.array([3, 2, 4]), seed=7, epoch=1).tolist() == FROZEN
    subsample = plan(table(3, 2, 4), weights={"a": 0.5, "b": 1.5}, seed=7).repeats(3)
    assert subsample.tolist() == FROZEN_REPEATS


FROZEN = [7, 5, 1, 2, 0, 4, 8, 3, 6]
FROZEN_REPEATS = [1, 2, 1, 1, 1, 0, 1, 0, 0]


@settings(deadline=None)
@given(sizes, st.integers(1, 9), st.integers(0, 3))
def test_an_epoch_has_every_sample_once_and_wraps(sizes: list[int], global_batch: int, epoch: int) -> None:
    made = plan(table(*sizes), global_batch=global_batch)
    batches_TG = made.epoch(epoch)
    count = sum(sizes)
    assert batches_TG.shape == (len(made), global_batch) and len(made) == -(-count // global_batch)
    flat = batches_TG.ravel().tolist()
    assert sorted(flat[:count]) == list(range(count))
    assert flat[count:] == [flat[i % count] for i in range(count, len(flat))]


@settings(deadline=None)
@given(st.sampled_from([0, 0.25, 0.5, 1, 1.3, 2, 3.75]), st.sampled_from([0.1, 1, 2.5]), st.integers(0, 4))
def test_weights_are_repeats_and_subsamples(weight_a: float, weight_b: float, epoch: int) -> None:
    reader = table(*[5] * 8)
    made = plan(reader, weights={"a": weight_a, "b": weight_b})
    came = Counter(made.epoch(epoch).ravel()[: made.samples_per_epoch].tolist())
    for source, weight in enumerate((weight_a, weight_b)):
        members = np.flatnonzero(reader.source_N == source).tolist()
        counts = [came[index] for index in members]
        assert sum(counts) == round(len(members) * weight)
        assert max(counts) - min(counts) <= 1 and set(counts) <= {int(weight), int(weight) + 1}


def test_a_subsample_moves_on_until_all_came_equally_often() -> None:
    reader = table(*[4] * 10)
    made = plan(reader, weights={"a": 0.3, "b": 1.5})
    members = np.flatnonzero(reader.source_N == 0)
    rest = round(len(members) * 0.3)
    total = sum(made.repeats(epoch) for epoch in range(len(members)))  # len(members) windows are `rest` rounds
    assert isinstance(total, np.ndarray) and (total[members] == rest).all()


@settings(deadline=None)
@given(st.sampled_from([(1, 1), (1, 2), (2, 1), (2, 2), (4, 1), (2, 4), (1, 8), (8, 1)]), st.integers(0, 3))
def test_the_world_gets_the_same_global_batches(split: tuple[int, int], epoch: int) -> None:
    world, micro = split
    reader = table(*[7] * 5)
    made = plan(reader, global_batch=8)
    batches_TG = made.epoch(epoch)
    dealt = made.deal(batches_TG, world, micro)
    assert dealt.shape == (len(made), 8 // (world * micro), world, micro)
    assert (np.sort(dealt.reshape(len(made), -1)) == np.sort(batches_TG)).all()


def test_dealing_pads_little_and_balances_processes() -> None:
    reader = table(*[100] * 20)
    made = plan(reader, global_batch=64)
    batches_TG = made.epoch(0)
    length_N = lengths(reader)  # type: ignore[arg-type]

    def padded(batch: np.ndarray) -> float:
        """Share of padding where the samples of each (..., M) are padded to the longest."""
        length = length_N[batch]
        return 1 - length.sum() / (length.max(-1) * batch.shape[-1]).sum()

    dealt = made.deal(batches_TG, 2, 4)
    assert padded(dealt) < 0.25 * padded(batches_TG.reshape(-1, 4))
    tokens_TAW = length_N[dealt].sum(-1)
    assert (tokens_TAW.max(-1) / tokens_TAW.min(-1)).mean() < 1.2


@given(st.integers(1, 40), st.integers(1, 5), st.integers(1, 4))
def test_evaluation_counts_every_sample_once(count: int, batch: int, world: int) -> None:
    parts = [evaluation_batches(count, batch, rank, world) for rank in range(world)]
    assert len({index.shape for index, _ in parts}) == 1
    assert sorted(i for index, valid in parts for i in index[valid].tolist()) == list(range(count))
    assert all((index >= 0).all() and (index < count).all() for index, _ in parts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"weights": {"aa": 1}}, "did you mean 'a'"),
        ({"weights": {"a": -1}}, "from 0 to 1000"),
        ({"weights": {"a": float("nan")}}, "from 0 to 1000"),
        ({"weights": {"a": 0, "b": 0}}, "no sample is left"),
        ({"global_batch": 0}, "at least 1"),
    ],
)
def test_bad_plans_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plan(table(3, 4), **options)


def test_a_global_batch_that_cannot_be_shared_is_refused() -> None:
    made = plan(table(9))
    with pytest.raises(ValueError, match="2 processes x micro_batch 4"):
        made.deal(made.epoch(0), 2, 4)
    with pytest.raises(ValueError, match="rank"):
        evaluation_batches(3, 1, 2, 2)
