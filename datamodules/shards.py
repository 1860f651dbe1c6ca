"""Shards as Lightning data: any folder that was built by `cropl shards build` or `ShardWriter`, for any model.

The module yields lists of `Sample`; what a model makes of them is the `collate` that it brings. Its position is one
global number, the samples trained on, saved with every checkpoint: training continues at the next sample, also with
another number of workers or processes, as long as the global batch is the same.
"""

from __future__ import annotations

import math
from typing import Any

import lightning as L

from cropl.data.manifest import Verify
from cropl.data.plan import ORDER_VERSION, Plan, evaluation_batches
from cropl.data.predicted import PredictedRegions
from cropl.data.shards import ShardReader
from cropl.data.stream import Collate, SampleStream, StartMethod, StreamLoader
from cropl.datamodules.ahead import localized_ahead
from cropl.datamodules.position import StreamPosition, check_limits


class ShardsDataModule(L.LightningDataModule):
    """Training, validation and test data from folders of shards.

    Args:
        train_dir: folder of the training shards, or several that are mixed; local, or an `https` address.
        val_dir: folder of the validation shards; None for no validation.
        test_dir: folder of the test shards; None for no test and prediction.
        global_batch: samples of an optimizer step, over all processes and accumulated batches.
        micro_batch: samples of one forward pass in one process; gradients are accumulated until the global batch is
            done. None takes all at once.
        eval_batch: samples of an evaluation batch per process.
        weights: how often the samples of a source come in an epoch, by the source's name: 2 is twice, 0.25 a quarter
            of them, another one in each epoch. 1 where a source is not named.
        num_workers: worker processes for each loader.
        start_method: of the worker processes.
        seed: of the training order.
        collate: makes a batch of a list of `Sample`. None takes the `collate` of the module that is trained or tested,
            and leaves the list where it has none.
        verify: how shards are compared with their manifest before the first step: `once` hashes every byte, but only
            if they were not found sound before and left untouched; `full` always does, `size` and `off` never. Shards
            at an address are checked when they are fetched.
        cache: where shards of an `https` address are kept; None is `$CROPL_CACHE` or `~/.cache/cropl`.
        decode_side: large JPEGs are decoded at a fraction as long as both sides keep this many pixels; give at least
            the model's input size. None decodes them whole.
        max_bad: share of an epoch's samples that may be left out of training because they cannot be decoded, counted
            in each process over its own part, anew with each epoch and each start. In evaluation they are an error.
        regions: file of the regions that a localizer has predicted (`cropl predict` writes it), for all folders or, as
            a mapping, for those that it names. Their samples come with `Sample.predicted`.

    Raises:
        ShardError: a folder has no complete shards; before the first step, with the file's name.
        ValueError: a sample with an image has no predicted region in its folder's file; before the first step.
    """

    def __init__(
        self,
        train_dir: str | list[str] | None = None,
        val_dir: str | list[str] | None = None,
        test_dir: str | list[str] | None = None,
        global_batch: int = 128,
        micro_batch: int | None = None,
        eval_batch: int = 16,
        weights: dict[str, float] | None = None,
        num_workers: int = 4,
        start_method: StartMethod = "forkserver",
        seed: int = 0,
        collate: Collate | None = None,
        verify: Verify = "once",
        cache: str | None = None,
        decode_side: int | None = None,
        max_bad: float = 0.01,
        regions: str | dict[str, str] | None = None,
    ) -> None:
        super().__init__()
        self.folders = {"train": train_dir, "val": val_dir, "test": test_dir}
        self.global_batch, self.micro_batch, self.eval_batch = global_batch, micro_batch, eval_batch
        self.weights, self.seed, self.collate = dict(weights or {}), seed, collate
        self.num_workers, self.start_method = num_workers, start_method
        self.verify, self.cache, self.decode_side, self.max_bad = verify, cache, decode_side, max_bad
        self.regions = regions
        self.micro_done = 0
        self.restored_from: int | None = None
        self.readers: dict[str, ShardReader] = {}
        self.predicted: dict[str, PredictedRegions] = {}
        self._training: StreamLoader | None = None

    def prepare_data(self) -> None:
        """Verify the shards in one process of each machine, so that the others find it done."""
        if self.verify == "once" and self.trainer is not None and self.trainer.state.fn is not None:
            self._open({"fit": "fit", "validate": "validate", "test": "test"}.get(self.trainer.state.fn, "predict"))

    def setup(self, stage: str) -> None:
        """Open and check the shards that `stage` needs; for training, make the plan and start counting."""
        self._open(stage)
        if stage == "fit":
            self.plan = Plan(self.readers["train"], self.global_batch, self.seed, self.weights)
            self._share()
            self._follow()

    def _open(self, stage: str) -> None:
        needed = {"fit": ("train", "val"), "validate": ("val",), "test": ("test",), "predict": ("test",)}[stage]
        for split in needed:
            folder = self.folders[split]
            if not folder and (split, stage) != ("val", "fit"):
                raise ValueError(f"data.{split}_dir is missing: `{stage}` needs a folder of shards")
            if folder and split not in self.readers:
                reader = ShardReader(folder, self.verify, self.cache, self.decode_side)
                self.check(split, reader)
                if self.regions is not None:
                    known = [name for each in self.folders for name in self._listed(each)]
                    weights = self.weights if split == "train" else {}
                    self.predicted[split] = PredictedRegions(reader, self._listed(split), self.regions, weights, known)
                self.readers[split] = reader

    def check(self, split: str, reader: ShardReader) -> None:
        """Refuse shards that hold something else than this data module is for; any will do here."""

    def _listed(self, split: str) -> list[str]:
        given = self.folders[split] or []
        return [given] if isinstance(given, str) else given

    @property
    def micro_steps(self) -> int:
        """A: micro-batches of an optimizer step."""
        return self.global_batch // (self._share() * self._place()[1])

    @property
    def steps_done(self) -> int:
        """Whole optimizer steps since the start of the training."""
        return self.micro_done // self.micro_steps

    @property
    def steps_per_epoch(self) -> int:
        """T: optimizer steps of an epoch."""
        return len(self.plan)

    @property
    def consumed(self) -> int:
        """Samples trained on, over all processes, in whole optimizer steps: the position."""
        return self.steps_done * self.global_batch

    @property
    def skipped(self) -> int:
        """Samples that this process could not decode and left out."""
        return self._training.skipped if self._training is not None else 0

    def advance(self) -> None:
        """One micro-step further."""
        self.micro_done += 1

    def train_dataloader(self) -> StreamLoader:
        """Each epoch anew from the current position."""
        mine = self.plan.samples_per_epoch / self._place()[1]
        max_skipped = math.ceil(self.max_bad * mine)
        self._training = self._loader(self._train_stream, len(self.plan) * self.micro_steps, max_skipped)
        return self._training

    def val_dataloader(self) -> StreamLoader | list[Any]:
        """Every validation sample once; repetitions that fill the last batch are marked."""
        return self._evaluation("val") if "val" in self.readers else []

    def test_dataloader(self) -> Any:
        """Every test sample once; repetitions that fill the last batch are marked."""
        return localized_ahead(self._evaluation("test"), self.trainer)

    def predict_dataloader(self) -> Any:
        """The test samples."""
        return self.test_dataloader()

    def state_dict(self) -> dict[str, Any]:
        """The position and what it is a position in."""
        if "train" not in self.readers:
            return {}
        return {**self._identity(), "consumed": self.consumed, "micro_steps": self.micro_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue at a saved position.

        Raises:
            ValueError: the data, its order or the global batch differ; the message says what.
        """
        fitting = self.trainer is None or self.trainer.state.fn == "fit"
        if not fitting or "train" not in self.readers or not state_dict:
            return
        now = {name: (state_dict.get(name), value) for name, value in self._identity().items()}
        changed = [f"{name}: {saved!r}, now {value!r}" for name, (saved, value) in now.items() if saved != value]
        if changed:
            raise ValueError(f"the checkpoint's position does not fit the data ({'; '.join(changed)})")
        self.micro_done = int(state_dict["consumed"]) // self.global_batch * self.micro_steps
        self.restored_from = int(state_dict["micro_steps"])

    def _collate(self) -> Collate | None:
        module = self.trainer.lightning_module if self.trainer is not None else None
        if self.collate is None and hasattr(type(module), "collate"):
            made: Collate = module.collate  # type: ignore[union-attr, assignment]
            return made
        return self.collate

    def _identity(self) -> dict[str, Any]:
        predicted = self.predicted.get("train")
        return {
            "order": ORDER_VERSION,
            "fingerprint": self.readers["train"].fingerprint,
            "seed": self.seed,
            "weights": dict(sorted(self.weights.items())),
            "global_batch": self.global_batch,
            "regions": predicted.fingerprint if predicted is not None else None,
        }

    def _place(self) -> tuple[int, int]:
        """This process and their number, from the trainer: neither environment nor workers know them for sure."""
        kwargs = (self.trainer.distributed_sampler_kwargs if self.trainer is not None else None) or {}
        return kwargs.get("rank", 0), kwargs.get("num_replicas", 1)

    def _share(self) -> int:
        """M: samples of one forward pass in one process."""
        world = self._place()[1]
        share = self.micro_batch if self.micro_batch is not None else self.global_batch // world
        if share < 1 or self.global_batch % (share * world):
            raise ValueError(
                f"data.global_batch {self.global_batch} must be a multiple of {world} processes"
                + (f" x micro_batch {self.micro_batch}" if self.micro_batch is not None else "")
            )
        return share

    def _follow(self) -> None:
        """Let the trainer accumulate as the global batch asks, and count ahead of any callback that saves."""
        if self.trainer is None:
            return
        check_limits(self.trainer, self.micro_steps)
        # A trainer that goes on has steps already; a checkpoint is loaded after this.
        self.micro_done, self.restored_from = self.trainer.global_step * self.micro_steps, None
        if self.trainer.accumulate_grad_batches not in (1, self.micro_steps):
            raise ValueError(
                f"trainer.accumulate_grad_batches {self.trainer.accumulate_grad_batches} does not fit global_batch "
                f"{self.global_batch} and micro_batch {self.micro_batch}, which make {self.micro_steps}; leave it out"
            )
        self.trainer.accumulate_grad_batches = self.micro_steps
        callbacks: list[L.Callback] = self.trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
        if not any(isinstance(callback, StreamPosition) and callback.data is self for callback in callbacks):
            callbacks.insert(0, StreamPosition(self))

    def _train_stream(self) -> SampleStream:
        epoch, start = divmod(self.steps_done, len(self.plan))
        rank, world = self._place()
        batches = self.plan.epoch(epoch)[start:]
        mine = self.plan.deal(batches, world, self._share())[:, :, rank].reshape(-1, self._share())
        return SampleStream(self._samples("train"), mine, collate=self._collate(), skip_bad=True)

    def _evaluation(self, split: str) -> StreamLoader:
        reader, (rank, world) = self.readers[split], self._place()
        index, valid = evaluation_batches(len(reader), self.eval_batch, rank, world)
        stream = SampleStream(self._samples(split), index, valid, self._collate())
        return self._loader(lambda: stream, len(stream))

    def _samples(self, split: str) -> Any:
        """What gives samples by number."""
        return self.predicted.get(split, self.readers[split])

    def _loader(self, open_stream: Any, batches: int, max_skipped: int = 0) -> StreamLoader:
        return StreamLoader(open_stream, batches, self.num_workers, self.start_method, max_skipped)
