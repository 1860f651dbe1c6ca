"""Which samples make which global batch, and who takes which of them: pure functions of (seed, epoch) and the manifest.

Nothing is shuffled in a buffer and nothing is asked of the environment. So the order does not depend on workers or
processes, continues exactly from a number of samples, and gives the same global batches to any world size.

An epoch is made in four steps: how often each sample comes (`repeats`), in what order (`epoch_order`), cut into global
batches of which the last one wraps, and each of them dealt out (`deal`): samples of like length share a forward pass.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from cropl.data.seeded import seeded
from cropl.data.shards import ShardReader
from cropl.errors import nearest

# N samples, E samples of an epoch, T steps (global batches) of an epoch, G samples of a global batch,
# A micro-batches of a step, W processes, M samples of a micro-batch and process

ORDER_VERSION = 2
"""Names the algorithm of this file; part of a saved position, because another algorithm is another order."""

WINDOW = 8
"""Shards whose samples are mixed with each other."""

IMAGE_TOKENS = 256
"""Length of an image in the estimate that batches are dealt by; it is near Qwen2-VL's at 448 x 448."""

CHARACTERS_PER_TOKEN = 4

MAX_WEIGHT = 1000


@dataclass(frozen=True)
class Plan:
    """The batches of every epoch.

    Args:
        reader: the shards.
        global_batch: samples of an optimizer step, over all processes.
        seed: of order and subsamples.
        weights: how often the samples of a source come in an epoch, by name; 1 where it is not named. The fraction of a
            weight is a subsample that moves on from epoch to epoch, so that all samples come equally often in the end.

    Raises:
        ValueError: a weight is negative or its source unknown, or nothing is left to train on.
    """

    reader: ShardReader
    global_batch: int
    seed: int = 0
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.global_batch < 1:
            raise ValueError(f"global_batch {self.global_batch} must be at least 1")
        for source, weight in self.weights.items():
            if source not in self.reader.sources:
                raise ValueError(f"weights: unknown source {source!r}{nearest(source, self.reader.sources, 'sources')}")
            if not 0 <= weight <= MAX_WEIGHT:  # nor is a NaN
                raise ValueError(f"weights: {source} has {weight}; a weight is a number from 0 to {MAX_WEIGHT}")
        if not self.samples_per_epoch:
            raise ValueError("no sample is left to train on: the weights of all sources are 0")

    @property
    def samples_per_epoch(self) -> int:
        """E, the same in every epoch."""
        counts = np.bincount(self.reader.source_N, minlength=len(self.reader.sources))
        return sum(self._total(i, count) for i, count in enumerate(counts.tolist()))

    def __len__(self) -> int:
        """T: steps of an epoch."""
        return -(-self.samples_per_epoch // self.global_batch)

    def epoch(self, epoch: int) -> np.ndarray:
        """Sample numbers (T, G) of an epoch; the last batch is filled up with the epoch's first samples."""
        order_E = epoch_order(self.reader.size_K, self.seed, epoch, self.repeats(epoch))
        places = np.arange(len(self) * self.global_batch) % len(order_E)
        return order_E[places].reshape(len(self), self.global_batch)

    def repeats(self, epoch: int) -> np.ndarray:
        """How often each sample comes in an epoch (N,)."""
        repeats_N = np.empty(len(self.reader), dtype=np.int64)
        for i, source in enumerate(self.reader.sources):
            members = np.flatnonzero(self.reader.source_N == i)
            whole, rest = divmod(self._total(i, len(members)), max(1, len(members)))
            repeats_N[members] = whole
            if rest:  # a window that moves through a fixed permutation of the source
                shuffled = seeded("cropl", ORDER_VERSION, self.seed, "subsample", source).permutation(members)
                repeats_N[shuffled[np.arange(epoch * rest, (epoch + 1) * rest) % len(members)]] += 1
        return repeats_N

    def deal(self, batch_TG: np.ndarray, world: int, micro_batch: int) -> np.ndarray:
        """Who takes which samples of each global batch, and when: (T, A, W, M).

        A global batch is sorted by estimated length and cut into A micro-steps of W x M samples, the longest first; in
        a micro-step neighbours in length go to different processes. So little is padded, and processes wait little for
        each other; a gradient over the whole global batch does not depend on it.

        Raises:
            ValueError: the global batch is not a multiple of world x micro_batch.
        """
        if batch_TG.shape[1] % (world * micro_batch):
            raise ValueError(
                f"global_batch {batch_TG.shape[1]} must be a multiple of {world} processes x micro_batch {micro_batch}"
            )
        longest_first = np.argsort(-lengths(self.reader)[batch_TG], axis=1, kind="stable")
        sorted_TG = np.take_along_axis(batch_TG, longest_first, axis=1)
        return sorted_TG.reshape(len(batch_TG), -1, micro_batch, world).swapaxes(2, 3)

    def _total(self, source: int, count: int) -> int:
        """Samples of a source in an epoch; at least one, unless its weight is 0."""
        weight = float(self.weights.get(self.reader.sources[source], 1))
        return max(round(count * weight), int(weight > 0 and count > 0))


def epoch_order(size_K: np.ndarray, seed: int, epoch: int, repeats_N: np.ndarray | None = None) -> np.ndarray:
    """The order of an epoch (E,): shards are permuted, then samples within windows of `WINDOW` shards.

    Args:
        size_K: samples of each shard.
        seed, epoch: what the order follows from.
        repeats_N: how often each sample comes; once by default.
    """
    random = seeded("cropl", ORDER_VERSION, seed, "order", epoch)
    end_K = np.cumsum(size_K)
    shards = [np.arange(end - size, end) for size, end in zip(np.asarray(size_K).tolist(), end_K.tolist())]
    permuted = [shards[k] for k in random.permutation(len(shards))]
    windows = []
    for first in range(0, len(permuted), WINDOW):
        members = np.concatenate(permuted[first : first + WINDOW])
        if repeats_N is not None:
            members = np.repeat(members, repeats_N[members])
        windows.append(random.permutation(members))
    return np.concatenate(windows) if windows else np.empty(0, dtype=np.int64)


def lengths(reader: ShardReader) -> np.ndarray:
    """Estimated tokens of each sample (N,)."""
    return (reader.width_N > 0) * IMAGE_TOKENS + reader.characters_N / CHARACTERS_PER_TOKEN


def evaluation_batches(count: int, batch: int, rank: int = 0, world: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Sample numbers and whether they count, each (batches, batch), for one process: every sample once, in order.

    All processes have equally many batches; what fills them up repeats the first samples and does not count.

    Raises:
        ValueError: the batch is empty, or the rank lies outside the world.
    """
    if batch < 1 or not 0 <= rank < world:
        raise ValueError(f"batch {batch}, rank {rank} of {world}: the batch must be at least 1, the rank below {world}")
    steps = -(-count // (batch * world))
    places = np.arange(steps * world * batch).reshape(steps, world, batch)[:, rank]
    return places % max(count, 1), places < count
