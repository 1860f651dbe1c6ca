"""The testbed's scenes as pictures that the model in training prepares itself, for families that have no cache."""

from __future__ import annotations

from functools import partial
from typing import Any

import lightning as L
from torch.utils.data import DataLoader, Dataset

from cropl.datamodules.testbed import EpochOrder, ResumableLoader, _place
from cropl.testbed.cache import evidence, question_row
from cropl.testbed.questions import questions
from cropl.testbed.scenes import Scene, scene


class TestbedPictures(L.LightningDataModule):
    """Scenes in seeded order, whole batches only in training; as `TestbedScenes`, but rendered anew each time.

    Batches are those of `TestbedScenes` without dense labels; pictures are prepared by the ``collate`` of the module.

    Args:
        scenes: number of training scenes.
        val_scenes: number of validation scenes.
        batch_size: pictures a step and process.
        seed: of the training order.
    """

    __test__ = False

    def __init__(self, scenes: int = 2000, val_scenes: int = 32, batch_size: int = 4, seed: int = 0):
        super().__init__()
        self.scenes, self.val_scenes, self.batch_size, self.seed = scenes, val_scenes, batch_size, seed

    def train_dataloader(self) -> ResumableLoader:
        scenes = Scenes("train", self.scenes)
        order = EpochOrder(scenes, **_place(self.trainer), shuffle=True, seed=self.seed, drop_last=True)
        return ResumableLoader(scenes, self.batch_size, sampler=order, drop_last=True, collate_fn=self._collate())

    def val_dataloader(self) -> DataLoader:
        return DataLoader(Scenes("val", self.val_scenes), self.batch_size, collate_fn=self._collate())

    def _collate(self) -> Any:
        assert self.trainer is not None
        return partial(collate, self.trainer.lightning_module.collate.prepare)  # type: ignore[union-attr]


class Scenes(Dataset[Scene]):
    """The first ``count`` scenes of a split."""

    def __init__(self, split: str, count: int):
        self.split, self.count = split, count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Scene:
        return scene(self.split, index)


def collate(prepare: Any, scenes: list[Scene]) -> dict[str, Any]:
    """A batch of scenes, with pictures that ``prepare`` made of them."""
    prepared = [prepare(one.render()) for one in scenes]
    return {
        "pixels": [one.pixels for one in prepared],
        "grids": [one.patches for one in prepared],
        "questions": [
            [{**question_row(one, asked), "evidence": evidence(asked, made.tokens)} for asked in questions(one)]
            for one, made in zip(scenes, prepared)
        ],
        "tokens": [one.tokens for one in prepared],
        "pictures": [one.render for one in scenes],
    }
