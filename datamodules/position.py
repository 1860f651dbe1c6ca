"""The position in the stream, as a callback: counts what was trained on, and sets Lightning's own counters to it.

Lightning counts micro-batches and epochs by itself, and its counters alone do not bring a run back to its place. The
number of micro-batches per optimizer step changes with the number of processes. A checkpoint may be written inside a
step, whose gradients it does not hold (`ModelCheckpoint` does so right after a resume): the step must then be done
again from its start. And an epoch that began by resuming at the end of the one before is never counted as begun. So the
counters of a checkpoint are worked out anew from the position before Lightning reads them.
"""

from __future__ import annotations

from typing import Any, Protocol

import lightning as L


class Positioned(Protocol):
    """A data module that keeps a position."""

    skipped: int
    """Samples that this process could not decode and left out."""
    restored_from: int | None
    """Micro-steps per optimizer step of the run that saved the position; None if none was restored."""

    @property
    def steps_done(self) -> int:
        """Optimizer steps since the start of the training."""

    @property
    def steps_per_epoch(self) -> int:
        """Optimizer steps of an epoch."""

    @property
    def micro_steps(self) -> int:
        """Micro-steps per optimizer step of this run."""

    def advance(self) -> None:
        """One micro-step further, on all processes."""


class StreamPosition(L.Callback):
    """Counts samples after each batch, ahead of any callback that saves.

    Counting when a batch starts would lose it if the step fails and a checkpoint is written then.
    """

    def __init__(self, data: Positioned) -> None:
        self.data = data

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.data.advance()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Log how many samples this process has left out, if any."""
        if self.data.skipped:
            pl_module.log("train/skipped", float(self.data.skipped), rank_zero_only=True)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Set Lightning's counters to the position, where a training is continued.

        Raises:
            ValueError: the checkpoint has no position of this data module, or its epochs cannot be matched.
        """
        if trainer.state.fn != "fit":
            return
        if self.data.restored_from is None:
            raise ValueError(
                f"the checkpoint holds no position of a {type(self.data).__name__}: it was written with other data. "
                "To start a new run from its weights, export them and give them as the module's checkpoint"
            )
        if is_limited(trainer):
            raise ValueError("a run cannot be continued with limit_train_batches: its epochs are not the stream's")
        set_counters(
            checkpoint["loops"]["fit_loop"],
            self.data.steps_done,
            self.data.steps_per_epoch,
            self.data.restored_from,
            self.data.micro_steps,
        )


def is_limited(trainer: L.Trainer) -> bool:
    """Whether Lightning's epochs are shorter than the data: 1 is one batch, 1.0 are all."""
    limit = trainer.limit_train_batches
    return isinstance(limit, int) or (limit is not None and limit < 1.0)


def check_limits(trainer: L.Trainer, micro_steps: int) -> None:
    """Refuse what would make Lightning's optimizer steps others than the stream's.

    Raises:
        ValueError: `overfit_batches`, or a `limit_train_batches` that ends epochs inside an optimizer step.
    """
    if trainer.overfit_batches:  # type: ignore[attr-defined]  # set by a connector
        raise ValueError("trainer.overfit_batches repeats batches: build a small set of shards instead")
    limit = trainer.limit_train_batches
    whole = isinstance(limit, int) and limit % micro_steps == 0
    if is_limited(trainer) and micro_steps > 1 and not whole and not trainer.fast_dev_run:  # type: ignore[attr-defined]
        raise ValueError(
            f"trainer.limit_train_batches {limit} ends epochs inside an optimizer step of {micro_steps} batches; give "
            f"a whole number of batches that is a multiple of {micro_steps}"
        )


def set_counters(loops: dict[str, Any], steps: int, per_epoch: int, old_micro: int, micro: int) -> None:
    """Set the counters of a saved fit loop to a number of optimizer steps.

    Args:
        loops: the state of Lightning's fit loop, changed in place.
        steps: optimizer steps that were done.
        per_epoch: optimizer steps of an epoch.
        old_micro: micro-batches per step when the state was saved.
        micro: micro-batches per step from now on.
    """
    batches, epochs = loops["epoch_loop.batch_progress"], loops["epoch_progress"]
    saved = batches["current"]
    inside = saved["processed"] % old_micro != 0 or saved["ready"] != saved["processed"]
    done, rest = divmod(steps, per_epoch)
    ended = rest == 0 and batches["is_last_batch"] and not inside
    # A batch is completed after the callbacks of its end: that is the state in which a step's checkpoint is written.
    lag = saved["processed"] - saved["completed"] if ended else 1
    for name, count in (("current", per_epoch if ended else rest), ("total", steps)):
        reached = count * micro
        batches[name].update(ready=reached, started=reached, processed=reached, completed=reached - lag)
    begun = done if ended else done + 1
    for name in ("current", "total"):
        epochs[name].update(ready=begun, started=begun)
        if not ended:
            epochs[name].update(processed=done, completed=done)
    if not ended:
        batches["is_last_batch"] = False
        loops["epoch_loop.state_dict"]["_batches_that_stepped"] = steps - 1
