"""The position in the stream, as a callback: counts what was trained on, and fits Lightning's own counters to it.

Lightning counts micro-batches of an epoch. Their number per optimizer step may change when a run is continued (another
number of processes), and a checkpoint may be written inside a step, whose gradients it does not hold: then the step is
done again from its start. Both are put right in the checkpoint before Lightning reads its counters.
"""

from __future__ import annotations

from typing import Any, Protocol

import lightning as L

_COUNTS = ("ready", "started", "processed", "completed")


class Positioned(Protocol):
    """A data module that keeps a position."""

    restored_from: int | None
    """Micro-steps per optimizer step of the run that saved the position; None if none was restored."""
    micro_steps: int
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

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Set Lightning's counters to the position.

        Raises:
            ValueError: the checkpoint has no position of this data module.
        """
        if self.data.restored_from is None:
            raise ValueError(
                f"the checkpoint holds no position of a {type(self.data).__name__}: it was written with other data. "
                "To start a new run from its weights, export them and give them as the module's checkpoint"
            )
        progress = checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]
        progress.update(rescaled(progress, self.data.restored_from, self.data.micro_steps))


def rescaled(progress: dict[str, Any], old: int, new: int) -> dict[str, Any]:
    """Lightning's batch progress with `new` micro-batches per optimizer step instead of `old`.

    A progress inside a step goes back to the start of that step.
    """
    current = progress["current"]
    inside = old > 1 and (current["processed"] % old != 0 or current["ready"] != current["processed"])
    if inside:
        counters = {
            name: dict.fromkeys(_COUNTS, counts["processed"] // old * new)
            for name, counts in progress.items()
            if name in ("total", "current")
        }
        return {**counters, "is_last_batch": False}
    if old == new:
        return progress
    return {
        name: {
            **{count: counts[count] // old * new for count in _COUNTS[:3]},
            # a checkpoint written in `on_train_batch_end` has not counted its own batch as completed yet
            "completed": counts["processed"] // old * new - (counts["processed"] - counts["completed"]),
        }
        if name in ("total", "current")
        else counts
        for name, counts in progress.items()
    }
