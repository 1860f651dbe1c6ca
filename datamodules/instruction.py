"""Instruction shards: questions and conversations with answers to train on, with images and without."""

from __future__ import annotations

import numpy as np

from cropl.data.shards import ShardReader
from cropl.datamodules.shards import ShardsDataModule


class InstructionShards(ShardsDataModule):
    """Shards of answered questions and conversations, such as LLaVA's. Arguments are those of `ShardsDataModule`.

    Raises:
        ValueError: a source has no answers (a benchmark's question file, for example).
    """

    def check(self, split: str, reader: ShardReader) -> None:
        check_answers(reader)


def check_answers(reader: ShardReader) -> None:
    """ValueError if the first sample of a source has no answer: a source has answers, or it has none."""
    for number, source in enumerate(reader.sources):
        first = reader.encoded(int(np.argmax(reader.source_N == number)))
        if not first.answers:
            raise ValueError(
                f"source {source!r} has no answers to train on (sample {first.key!r}); build its shards from files "
                "with answers, or leave it out with weights"
            )
