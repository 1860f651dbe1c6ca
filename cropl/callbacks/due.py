"""The end of an optimizer step, which checkpoints describe, and the validation that is due there.

Where a checkpoint does not know that validation yet, it is done on continuing: otherwise early stopping and the best
checkpoint would miss a score that the uninterrupted run has seen.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping

from cropl.callbacks import rng


@dataclass
class Boundary:
    """The end of an optimizer step.

    Attributes:
        loops: Lightning's counters.
        drawn: this process's random state.
        validate: whether a validation is due that callbacks do not know yet.
        known: batch of the next step after which a validation is due that callbacks know already; -1 for none.
    """

    loops: dict[str, Any]
    drawn: rng.State
    validate: bool
    known: int = -1

    @classmethod
    def here(cls, trainer: L.Trainer, drawn: rng.State) -> Boundary:
        """The step that ends with this batch."""
        return cls(copy.deepcopy(trainer.fit_loop.state_dict()), drawn, _is_due(trainer))

    def skip_known(self, trainer: L.Trainer) -> None:
        """At the end of a batch: leave out the validation after it if it is known."""
        if trainer.fit_loop.total_batch_idx == self.known:
            trainer.fit_loop.epoch_loop._skip_next_val = True

    def settle(self, trainer: L.Trainer) -> None:
        """Callbacks know the validation that was due, or the one that was done since, inside the next step."""
        self.validate = False
        self.known = trainer.fit_loop.total_batch_idx if trainer.fit_loop._should_accumulate() else -1


def saved_in(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """What our callback has put into a checkpoint, and its counters; another writer's has the latter alone."""
    nothing = {"rng": [], "base": {}, "settings": {}, "run": "", "validate": False, "known": -1}
    loops = copy.deepcopy(checkpoint.get("loops", {}).get("fit_loop", {}))
    return {**nothing, **checkpoint.get("cropl", {}), "loops": loops}


def _is_due(trainer: L.Trainer) -> bool:
    """One by the clock (``val_check_interval`` as a time) is not counted: no two runs have it at the same step."""
    loop: Any = trainer.fit_loop
    clock: Any = getattr(trainer, "_val_check_time_interval", None)
    return clock is None and bool(loop.epoch_loop._should_check_val_fx(loop._data_fetcher))


def ends_epoch(trainer: L.Trainer) -> bool:
    """Whether the last batch was an epoch's last: then early stopping may look at the scores at the epoch's end."""
    return bool(trainer.fit_loop.epoch_loop.batch_progress.is_last_batch)


def validate(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Do the validation that was due when the checkpoint that is continued was written; at the start of a training."""
    loop = trainer.fit_loop.epoch_loop.val_loop
    loop.restarting = False
    trainer.validating = True
    loop.run()
    trainer.training = True
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    for callback in callbacks if ends_epoch(trainer) else ():
        if isinstance(callback, EarlyStopping) and callback.monitor in trainer.callback_metrics:
            callback.on_train_epoch_end(trainer, module)
