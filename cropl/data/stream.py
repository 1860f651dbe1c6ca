"""The order in which shards are trained on or evaluated, as a pure function, and the stream that follows it.

Nothing is shuffled in a buffer and nothing is asked of the environment: which samples batch b of epoch e holds, and
which of them rank r takes, follows from (seed, epoch), the manifest and the global batch alone. So the stream does not
depend on the number of workers, continues exactly from a number of samples, and gives the same global batches to any
world size. Every rank has equally many batches: the last one wraps in training and is filled with marked repetitions
(`Sample.valid` is False) in evaluation.
"""

import multiprocessing
import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import islice
from multiprocessing.context import BaseContext
from typing import Any

from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from cropl.data.manifest import Manifest
from cropl.data.sample import Sample
from cropl.data.shards import ShardReader

ORDER_VERSION = 1
"""Names the algorithm of `epoch_order`; part of a saved position, because another algorithm is another order."""

WINDOW = 8
"""Shards whose samples are mixed with each other."""


def epoch_order(manifest: Manifest, seed: int, epoch: int) -> list[int]:
    """The order of all samples in one epoch: shards are permuted, then samples within windows of `WINDOW` shards."""
    rng = random.Random(f"cropl-{ORDER_VERSION}-{seed}-{epoch}")
    ranges, start = [], 0
    for shard in manifest.shards:
        ranges.append(range(start, start + len(shard.entries)))
        start += len(shard.entries)
    rng.shuffle(ranges)
    order: list[int] = []
    for first in range(0, len(ranges), WINDOW):
        window = [index for members in ranges[first : first + WINDOW] for index in members]
        rng.shuffle(window)
        order += window
    return order


class SampleStream(IterableDataset[Any]):
    """One rank's batches of one epoch, from a position on; used with `DataLoader(batch_size=None)`.

    With W workers, worker w makes the batches w, w + W, ...: DataLoader returns them in order, so their number does
    not matter.

    Args:
        reader: the shards.
        global_batch: samples of a batch over all ranks.
        rank, world: this process and their number, given by the caller: worker processes can not know them.
        seed, epoch: of the order; `seed=None` is the manifest's own order.
        start: batches of this epoch that are already done.
        training: wrap the last batch; otherwise fill it with samples marked `valid=False`.
        collate: makes a batch of a list of `Sample`; runs in the worker. None yields the list.

    Raises:
        ValueError: the global batch is not a multiple of the world size, or the rank lies outside it.
    """

    def __init__(
        self,
        reader: ShardReader,
        global_batch: int,
        rank: int = 0,
        world: int = 1,
        seed: int | None = None,
        epoch: int = 0,
        start: int = 0,
        training: bool = True,
        collate: Callable[[list[Sample]], Any] | None = None,
    ) -> None:
        if not 0 <= rank < world:
            raise ValueError(f"rank {rank} is outside 0..{world - 1}")
        if global_batch < 1 or global_batch % world:
            raise ValueError(f"global_batch {global_batch} must be a positive multiple of the {world} processes")
        self.reader, self.global_batch, self.rank, self.world = reader, global_batch, rank, world
        self.seed, self.epoch, self.start, self.training, self.collate = seed, epoch, start, training, collate

    def __len__(self) -> int:
        """Batches of a whole epoch, equal on every rank."""
        return -(-len(self.reader) // self.global_batch)

    def batches(self) -> Iterator[list[tuple[int, bool]]]:
        """The plan: for each batch that is left, this rank's `(sample index, valid)` pairs."""
        manifest = self.reader.manifest
        order = list(range(len(manifest))) if self.seed is None else epoch_order(manifest, self.seed, self.epoch)
        share = self.global_batch // self.world
        for batch in range(self.start, len(self)):
            first = batch * self.global_batch + self.rank * share
            places = range(first, first + share)
            yield [(order[p % len(order)], self.training or p < len(order)) for p in places]

    def __iter__(self) -> Iterator[Any]:
        worker = get_worker_info()
        plan = islice(self.batches(), worker.id, None, worker.num_workers) if worker else self.batches()
        for batch in plan:
            samples = [self._marked(self.reader[index], valid) for index, valid in batch]
            yield self.collate(samples) if self.collate else samples

    @staticmethod
    def _marked(sample: Sample, valid: bool) -> Sample:
        return sample if valid else replace(sample, valid=False)


class StreamLoader:
    """An endless row of epochs for a training loop: each iteration opens the stream at the position it is told.

    It is no DataLoader, so that a framework leaves its order alone; `__len__` is the number of batches of an epoch.

    Args:
        open_stream: returns the stream of the current position; called once an epoch.
        num_workers: worker processes of the loader.
        context: their start method; `forkserver`, unlike `fork`, is safe beside communication threads.
    """

    def __init__(
        self, open_stream: Callable[[], SampleStream], num_workers: int = 0, context: str = "forkserver"
    ) -> None:
        self.open_stream, self.num_workers, self.context = open_stream, num_workers, context

    def __len__(self) -> int:
        return len(self.open_stream())

    def __iter__(self) -> Iterator[Any]:
        return iter(
            DataLoader(
                self.open_stream(),
                batch_size=None,
                num_workers=self.num_workers,
                multiprocessing_context=self._context(),
                collate_fn=_as_is,
            )
        )

    def _context(self) -> BaseContext | None:
        if not self.num_workers:
            return None
        context = multiprocessing.get_context(self.context)
        # The server imports torch once; the workers, new in every epoch, are forked from it in no time.
        context.set_forkserver_preload(["__main__", __name__])
        return context

    def state_dict(self) -> dict[str, Any]:
        """Nothing: whoever opens the stream keeps the position. A framework that saves loaders finds the hooks here."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing, see `state_dict`."""


def _as_is(batch: Any) -> Any:
    return batch
