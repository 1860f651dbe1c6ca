"""A benchmark's shards, for `test` and `predict`: every question once, over any number of processes."""

from __future__ import annotations

from cropl.data.manifest import Verify
from cropl.datamodules.shards import ShardsDataModule


class BenchmarkShards(ShardsDataModule):
    """Questions to be answered and scored; what fills the last batches is marked and not counted.

    Args:
        test_dir: folder of the shards, or several.
        eval_batch: questions of a batch per process.
        num_workers: worker processes.
        verify, cache: see `ShardsDataModule`.
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
