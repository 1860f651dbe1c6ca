"""Instruction shards: questions and conversations with answers to train on, with images and without."""

from __future__ import annotations

import numpy as np

from cropl.data.shards import ShardReader
from cropl.datamodules.localization import visited
from cropl.datamodules.shards import ShardsDataModule

# N samples


class InstructionShards(ShardsDataModule):
    """Shards of answered questions and conversations, such as LLaVA's. Arguments are those of `ShardsDataModule`.

    Raises:
        ValueError: samples have no answers (a benchmark's question file, for example). In training, sources with the
            weight 0 may have none.
    """

    def check(self, split: str, reader: ShardReader) -> None:
        check_answers(reader, visited(split, reader, self.weights))


def check_answers(reader: ShardReader, of_N: np.ndarray) -> None:
    """ValueError unless each of these samples (a mask) has an answer."""
    if unanswered := reader.told(of_N & (reader.answers_N == 0)):
        raise ValueError(
            f"samples without an answer: {unanswered}; nothing can be learnt or scored there. Build the shards from "
            "files with answers; to train, a source may also be left out with the weight 0"
        )
