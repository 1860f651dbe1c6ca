"""Grid-labelled shards: every sample has evidence boxes, and its region is what a localizer learns."""

from __future__ import annotations

import numpy as np

from cropl.data.shards import ShardReader
from cropl.datamodules.shards import ShardsDataModule


class LocalizationShards(ShardsDataModule):
    """Shards of questions with evidence boxes, such as Visual-CoT's. Arguments are those of `ShardsDataModule`.

    Raises:
        ValueError: a source has samples without boxes, whose region would be the whole image by default alone.
    """

    def check(self, split: str, reader: ShardReader) -> None:
        check_boxes(reader)


def check_boxes(reader: ShardReader) -> None:
    """ValueError unless every sample has evidence boxes."""
    bare = np.bincount(reader.source_N[reader.boxes_N == 0], minlength=len(reader.sources))
    named = [f"{source} ({count:,})" for source, count in zip(reader.sources, bare.tolist()) if count]
    if named:
        raise ValueError(
            f"samples without evidence boxes: {', '.join(named)}; a localizer cannot learn regions from them. Mix them "
            "in with MixedShards(instruction=...), or give shards with boxes"
        )
