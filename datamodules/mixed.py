"""The paper's mix: grid-labelled samples to localize, and conversations to go on following instructions."""

from __future__ import annotations

from typing import Any

import numpy as np

from cropl.data.shards import ShardReader
from cropl.datamodules.instruction import check_answers
from cropl.datamodules.localization import check_boxes, visited
from cropl.datamodules.shards import ShardsDataModule

# N samples of both parts, those of the localization folders first


class MixedShards(ShardsDataModule):
    """Localization and instruction shards in one stream.

    Args:
        localization: folders of shards whose samples all have evidence boxes.
        instruction: folders of shards of answered conversations.
        localization_share: share of localization samples in an epoch. The larger part is then subsampled, another part
            of it in each epoch; None takes every sample once, as the paper does (about 0.67 there).
        weights: on top of this, as in `ShardsDataModule`.
        options: the other arguments of `ShardsDataModule`.

    Raises:
        ValueError: localization samples without boxes, samples without answers (also for validation), an empty part, a
            source that is in both parts, or a share outside 0..1. In training, what has the weight 0 does not count.
    """

    def __init__(
        self,
        localization: str | list[str],
        instruction: str | list[str],
        localization_share: float | None = None,
        weights: dict[str, float] | None = None,
        **options: Any,
    ) -> None:
        self.parts = [[part] if isinstance(part, str) else list(part) for part in (localization, instruction)]
        super().__init__(train_dir=[*self.parts[0], *self.parts[1]], weights=weights, **options)
        if localization_share is not None and not 0 < localization_share < 1:
            raise ValueError(f"localization_share {localization_share} must lie between 0 and 1")
        self.localization_share = localization_share

    def check(self, split: str, reader: ShardReader) -> None:
        if split == "test":  # may be for prediction
            return
        of_N = visited(split, reader, self.weights)
        check_answers(reader, of_N)
        if split == "val":
            return
        first_N = np.arange(len(reader)) < reader.size_F[: len(self.parts[0])].sum()
        located_N, instructed_N = of_N & first_N, of_N & ~first_N
        for part, part_N in (("localization", located_N), ("instruction", instructed_N)):
            if not part_N.any():
                raise ValueError(f"no sample of the part {part!r} is left to train on: give it a folder, or weights")
        check_boxes(reader, located_N)
        located, instructed = (_sources(reader, part_N) for part_N in (located_N, instructed_N))
        if both := located & instructed:
            raise ValueError(f"sources {', '.join(sorted(both))} are in both parts; give them different names")
        if self.localization_share is not None:
            share = self.localization_share
            odds = share / (1 - share) * int(instructed_N.sum()) / int(located_N.sum())
            larger, factor = (located, odds) if odds < 1 else (instructed, 1 / odds)
            for source in larger:
                self.weights[source] = self.weights.get(source, 1.0) * factor


def _sources(reader: ShardReader, of_N: np.ndarray) -> set[str]:
    """Names of the sources of these samples (a mask)."""
    return {reader.sources[number] for number in np.unique(reader.source_N[of_N])}
