"""The paper's mix: grid-labelled samples to localize, and conversations to go on following instructions."""

from __future__ import annotations

from typing import Any

from cropl.data.shards import ShardReader
from cropl.datamodules.instruction import check_answers
from cropl.datamodules.localization import check_boxes
from cropl.datamodules.shards import ShardsDataModule


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
        ValueError: localization samples without boxes, conversations without answers, a source that is in both, or a
            share outside 0..1.
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
        if split != "train":
            return
        located, instructed = (ShardReader(part, "off", self.cache) for part in self.parts)
        check_boxes(located)
        check_answers(instructed)
        both = set(located.sources) & set(instructed.sources)
        if both:
            raise ValueError(f"sources {', '.join(sorted(both))} are in both parts; give them different names")
        if self.localization_share is not None:
            self._share_out(located, instructed, self.localization_share)

    def _share_out(self, located: ShardReader, instructed: ShardReader, share: float) -> None:
        """Weigh the larger part down to its share."""
        odds = share / (1 - share) * len(instructed) / len(located)
        part, factor = (located, odds) if odds < 1 else (instructed, 1 / odds)
        for source in part.sources:
            self.weights[source] = self.weights.get(source, 1.0) * factor
