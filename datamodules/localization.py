"""Grid-labelled shards: every sample has evidence boxes, and its region is what a localizer learns."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from cropl.data.shards import ShardReader
from cropl.datamodules.shards import ShardsDataModule

# N samples


class LocalizationShards(ShardsDataModule):
    """Shards of questions with evidence boxes, such as Visual-CoT's. Arguments are those of `ShardsDataModule`.

    Raises:
        ValueError: a source has samples without boxes, whose region would be the whole image by default alone. In
            training, sources with the weight 0 may have them.
    """

    def check(self, split: str, reader: ShardReader) -> None:
        check_boxes(reader, visited(split, reader, self.weights))


def visited(split: str, reader: ShardReader, weights: Mapping[str, float]) -> np.ndarray:
    """The samples (N,) that are ever visited: in training, those of sources with the weight 0 are not."""
    if split != "train":
        return np.ones(len(reader), dtype=bool)
    return np.array([weights.get(source, 1) != 0 for source in reader.sources])[reader.source_N]


def check_boxes(reader: ShardReader, of_N: np.ndarray) -> None:
    """ValueError unless each of these samples (a mask) has evidence boxes."""
    if bare := reader.told(of_N & (reader.boxes_N == 0)):
        raise ValueError(
            f"samples without evidence boxes: {bare}; a localizer cannot learn or be scored on regions there. Give "
            "shards with boxes; to train, a source may also be left out with the weight 0, or mixed in with "
            "MixedShards(instruction=...)"
        )
