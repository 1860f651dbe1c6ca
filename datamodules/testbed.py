"""The testbed as Lightning data: scenes to train on, and questions to be tested on."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, DistributedSampler

from cropl.data.sample import Sample
from cropl.datamodules.ahead import localized_ahead
from cropl.testbed import weights
from cropl.testbed.cache import CachedScene, SceneCache
from cropl.testbed.samples import samples


class TestbedScenes(L.LightningDataModule):
    """Cached scenes in seeded order, whole batches only in training.

    The order is a function of ``seed`` and the epoch alone, and a run that is continued in the middle of an epoch goes
    on at the next batch (see :class:`ResumableLoader`). `cropl.callbacks.checkpoint.Checkpoint` restores random draws.

    Args:
        checkpoint: folder of the model whose image processor prepares the pictures.
        scenes: number of training scenes.
        val_scenes: number of validation scenes.
        batch_size: pictures a step and process.
        cache: folder of the rendered caches.
        seed: of the training order.
    """

    __test__ = False

    def __init__(
        self,
        checkpoint: str,
        scenes: int = 12000,
        val_scenes: int = 256,
        batch_size: int = 16,
        cache: str = "runs/cache",
        seed: int = 0,
    ):
        super().__init__()
        self.checkpoint, self.cache = weights.resolve(checkpoint), cache
        self.scenes, self.val_scenes, self.batch_size, self.seed = scenes, val_scenes, batch_size, seed

    def prepare_data(self) -> None:
        """Build the caches, in one process; all others only open them in :meth:`setup`."""
        if self.trainer is None or self.trainer.state.fn == "fit":
            SceneCache(self.checkpoint, "train", self.scenes, self.cache)
        SceneCache(self.checkpoint, "val", self.val_scenes, self.cache)

    def setup(self, stage: str | None = None) -> None:
        if stage == "fit":
            self.train_set = SceneCache(self.checkpoint, "train", self.scenes, self.cache)
        self.val_set = SceneCache(self.checkpoint, "val", self.val_scenes, self.cache)

    def train_dataloader(self) -> ResumableLoader:
        order = EpochOrder(self.train_set, **_place(self.trainer), shuffle=True, seed=self.seed, drop_last=True)
        return ResumableLoader(
            self.train_set, self.batch_size, sampler=order, drop_last=True, collate_fn=collate_scenes
        )

    def val_dataloader(self) -> DataLoader:
        return DataLoader(self.val_set, self.batch_size, collate_fn=collate_scenes)


class EpochOrder(DistributedSampler):
    """A permutation for each epoch from ``seed + epoch`` (Lightning calls ``set_epoch``), shared out over processes."""

    skip = 0
    """Samples to leave out at the start of the next pass, once."""

    def __iter__(self) -> Iterator[int]:
        skip, self.skip = self.skip, 0
        return islice(super().__iter__(), skip, None)


class ResumableLoader(DataLoader):
    """A loader over an :class:`EpochOrder` that Lightning saves in the checkpoint, to continue at the next batch."""

    batches = 0
    """Batches given out in this epoch."""
    first = 0
    """The batch to start the next pass with."""

    def __iter__(self) -> Iterator[dict[str, Any]]:  # type: ignore[override]
        first, self.first = self.first, 0
        if isinstance(self.sampler, EpochOrder):
            self.sampler.skip = first * int(self.batch_size or 1)
        for self.batches, batch in enumerate(super().__iter__(), start=first + 1):
            yield batch

    def state_dict(self) -> dict[str, int]:
        return {"batches": self.batches}

    def load_state_dict(self, state: dict[str, int]) -> None:
        self.first = state["batches"] % max(1, len(self))  # a whole epoch: the next one starts


def _place(trainer: L.Trainer | None) -> dict[str, int]:
    """The ``rank`` of this process among ``num_replicas``."""
    alone = {"num_replicas": 1, "rank": 0}
    return (trainer.distributed_sampler_kwargs if trainer else None) or alone


def collate_scenes(items: list[CachedScene]) -> dict[str, Any]:
    """Pixels stay a list (their shapes differ in Qwen2-VL); labels are concatenated over all patches.

    ``pictures`` are functions that give the picture as a person sees it: most batches never need it.
    """
    return {
        "pixels": [item.pixels for item in items],
        "grids": [item.grid_hw for item in items],
        "labels": torch.cat([item.labels for item in items]),
        "questions": [item.questions for item in items],
        "tokens": [item.tokens for item in items],
        "pictures": [item.picture for item in items],
    }


class TestbedQuestions(L.LightningDataModule):
    """The testbed's questions as samples, for ``test`` and ``predict``: each once, over any number of processes.

    Batches are ``{"samples": [...], "valid": [...]}``. Every process gets equally many; what fills up the last ones is
    marked invalid.

    Args:
        split: ``val`` or ``test``.
        count: number of questions.
        batch_size: questions a step and process.
    """

    __test__ = False

    def __init__(self, split: str = "test", count: int = 600, batch_size: int = 16):
        super().__init__()
        self.split, self.count, self.batch_size = split, count, batch_size

    def setup(self, stage: str | None = None) -> None:
        self.samples = samples(self.split, self.count)

    def test_dataloader(self) -> Any:
        place = _place(self.trainer)
        batches = MarkedBatches(self.samples, self.batch_size, place["rank"], place["num_replicas"])
        return localized_ahead(batches, self.trainer)

    predict_dataloader = test_dataloader


class MarkedBatches:
    """Sample i goes to rank i mod world; all ranks have equally many batches of equal size, with the padding marked.

    Lightning's own sampler would repeat samples without a mark, and metrics would count them twice.
    """

    def __init__(self, samples: Sequence[Sample], batch_size: int, rank: int = 0, world: int = 1):
        self.samples, self.batch_size, self.rank, self.world = samples, batch_size, rank, world

    def __len__(self) -> int:
        return -(-len(self.samples) // (self.world * self.batch_size))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in range(len(self)):
            first = batch * self.world * self.batch_size + self.rank
            numbers = [first + i * self.world for i in range(self.batch_size)]
            yield {
                "samples": [self.samples[n % len(self.samples)] for n in numbers],
                "valid": [n < len(self.samples) for n in numbers],
            }
