"""A benchmark's shards, for `test` and `predict`: every question once, over any number of processes."""

from __future__ import annotations

from cropl.data.manifest import Verify
from cropl.data.shards import ShardReader
from cropl.datamodules.shards import ShardsDataModule


class BenchmarkShards(ShardsDataModule):
    """Questions about images, to be answered and scored; what fills the last batches is marked and not counted.

    Args:
        test_dir: folder of the shards, or several.
        eval_batch: questions of a batch per process.
        num_workers: worker processes.
        verify, cache: see `ShardsDataModule`.

    Raises:
        ValueError: samples have no image; or for `test`, which scores, no answer.
    """

    def __init__(
        self,
        test_dir: str | list[str],
        eval_batch: int = 16,
        num_workers: int = 4,
        verify: Verify = "once",
        cache: str | None = None,
    ) -> None:
        super().__init__(test_dir=test_dir, eval_batch=eval_batch, num_workers=num_workers, verify=verify, cache=cache)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        reader = self.readers["test"]
        if stage == "test" and (unanswered := reader.told(reader.answers_N == 0)):
            raise ValueError(
                f"samples without an answer: {unanswered}; `test` has nothing to score there. Build the shards from "
                "files with answers, or use `predict`, which needs none"
            )

    def check(self, split: str, reader: ShardReader) -> None:
        if blind := reader.told(reader.width_N == 0):
            raise ValueError(
                f"samples without an image: {blind}; a benchmark's questions are about images. Evaluation takes every "
                "sample, whatever the weights: build its shards without the rows that are text alone"
            )
