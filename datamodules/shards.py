"""Grid-labelled shards as Lightning data: any folder that `ShardWriter` wrote, for any model.

The module yields lists of `Sample`; what a model makes of them is the `collate` that it is given. Its position is one
global number, the samples trained on, saved with every checkpoint: training continues at the next sample, also with
another number of workers or processes, as long as the global batch is the same.
"""

from collections.abc import Callable
from typing import Any

import lightning as L

from cropl.data.manifest import Verify
from cropl.data.sample import Sample
from cropl.data.shards import ShardReader
from cropl.data.stream import ORDER_VERSION, SampleStream, StreamLoader

Collate = Callable[[list[Sample]], Any]


class StreamPosition(L.Callback):
    """Counts the samples that were trained on, after each batch and ahead of any callback that saves.

    Counting when a batch starts would lose it if the step fails and a checkpoint is written then.
    """

    def __init__(self, data: "ShardsDataModule") -> None:
        self.data = data

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """One global batch further."""
        self.data.consumed += self.data.global_batch


class ShardsDataModule(L.LightningDataModule):
    """Training, validation and test data from folders of shards.

    Args:
        train_dir: folder of the training shards.
        val_dir: folder of the validation shards; None for no validation.
        test_dir: folder of the test shards; None for no test and prediction.
        global_batch: samples of a training batch over all processes.
        eval_batch: samples of an evaluation batch per process.
        num_workers: worker processes for each loader.
        seed: of the training order.
        collate: makes a batch of a list of `Sample`. None takes the `collate` of the module that is trained or tested,
            and leaves the list where it has none.
        verify: how shards are compared with their manifest before the first step: `size`, `full` or `off`.

    Raises:
        ShardError: a folder has no complete shards; before the first step, with the file's name.
    """

    def __init__(
        self,
        train_dir: str | None = None,
        val_dir: str | None = None,
        test_dir: str | None = None,
        global_batch: int = 128,
        eval_batch: int = 16,
        num_workers: int = 4,
        seed: int = 0,
        collate: Collate | None = None,
        verify: Verify = "size",
    ) -> None:
        super().__init__()
        self.folders = {"train": train_dir, "val": val_dir, "test": test_dir}
        self.global_batch, self.eval_batch, self.num_workers = global_batch, eval_batch, num_workers
        self.seed, self.collate, self.verify = seed, collate, verify
        self.consumed = 0
        self.readers: dict[str, ShardReader] = {}

    def setup(self, stage: str) -> None:
        """Open and check the shards that `stage` needs, and start counting."""
        needed = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}[stage]
        for split in needed:
            folder = self.folders[split]
            if folder is None and (split, stage) != ("val", "fit"):
                raise ValueError(f"data.{split}_dir is missing: `{stage}` needs a folder of shards")
            if folder is not None and split not in self.readers:
                self.readers[split] = ShardReader(folder, self.verify)
        if stage == "fit" and self.trainer is not None:
            callbacks: list[L.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
            if not any(isinstance(callback, StreamPosition) and callback.data is self for callback in callbacks):
                callbacks.insert(0, StreamPosition(self))

    def train_dataloader(self) -> StreamLoader:
        """Each epoch anew from the current position."""
        return StreamLoader(self._train_stream, self.num_workers)

    def val_dataloader(self) -> StreamLoader | list[Any]:
        """Every validation sample once; repetitions that fill the last batch are marked."""
        return self._evaluation("val") if "val" in self.readers else []

    def test_dataloader(self) -> StreamLoader:
        """Every test sample once; repetitions that fill the last batch are marked."""
        return self._evaluation("test")

    def predict_dataloader(self) -> StreamLoader:
        """The test samples."""
        return self._evaluation("test")

    def state_dict(self) -> dict[str, Any]:
        """The position and what it is a position in."""
        return {**self._identity(), "consumed": self.consumed} if "train" in self.readers else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at a saved position.

        Raises:
            ValueError: the data, its order or the global batch differ; the message says what.
        """
        if "train" not in self.readers or not state_dict:
            return
        now = {name: (state_dict.get(name), value) for name, value in self._identity().items()}
        changed = [f"{name}: {saved!r}, now {value!r}" for name, (saved, value) in now.items() if saved != value]
        if changed:
            raise ValueError(f"the checkpoint's position does not fit the data ({'; '.join(changed)})")
        self.consumed = int(state_dict["consumed"])

    def _collate(self) -> Collate | None:
        module = self.trainer.lightning_module if self.trainer is not None else None
        if self.collate is None and hasattr(type(module), "collate"):
            made: Collate = module.collate  # type: ignore[union-attr, assignment]
            return made
        return self.collate

    def _identity(self) -> dict[str, Any]:
        fingerprint = self.readers["train"].manifest.fingerprint
        return {
            "order": ORDER_VERSION,
            "fingerprint": fingerprint,
            "seed": self.seed,
            "global_batch": self.global_batch,
        }

    def _place(self) -> tuple[int, int]:
        """This process and their number, from the trainer: neither environment nor workers know them for sure."""
        kwargs = (self.trainer.distributed_sampler_kwargs if self.trainer is not None else None) or {}
        return kwargs.get("rank", 0), kwargs.get("num_replicas", 1)

    def _train_stream(self) -> SampleStream:
        reader = self.readers["train"]
        per_epoch = -(-len(reader) // self.global_batch)
        epoch, start = divmod(self.consumed // self.global_batch, per_epoch)
        rank, world = self._place()
        return SampleStream(
            reader, self.global_batch, rank, world, seed=self.seed, epoch=epoch, start=start, collate=self._collate()
        )

    def _evaluation(self, split: str) -> StreamLoader:
        reader, (rank, world) = self.readers[split], self._place()
        stream = SampleStream(reader, self.eval_batch * world, rank, world, training=False, collate=self._collate())
        return StreamLoader(lambda: stream, self.num_workers)
