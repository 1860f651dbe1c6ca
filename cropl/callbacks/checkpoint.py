"""Step-named checkpoints from which a training goes on as if nothing had happened.

Each describes the end of an optimizer step, whenever it is written: Lightning's counters and the random states are
noted when a step ends, and a checkpoint that is written later, such as in a validation, holds those. A validation that
was due at that step, and that it does not know, is done first where it is continued.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any, Literal

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.rank_zero import rank_zero_info

from cropl.callbacks import complete, due, hyperparameters, identity, rng
from cropl.callbacks.best import Best
from cropl.callbacks.due import Boundary
from cropl.callbacks.preemption import Signals
from cropl.callbacks.processes import together
from cropl.callbacks.run_folder import Claim, last, lies_in, prune, run_of
from cropl.callbacks.writer import attach
from cropl.errors import RunError

_log = logging.getLogger(__name__)


class Checkpoint(ModelCheckpoint):
    """Saves ``step-N`` every so many optimizer steps and at the end, each complete or absent.

    ``--ckpt_path last`` continues from the newest one that is sound, exactly: all processes' random states are in it,
    and validation draws from states of its own. SIGTERM (and SLURM's requeueing) saves at the end of the step, or of
    the validation, that is being done, and ends the process with code 143. One run at a time writes into a folder.

    Args:
        dirpath: where; None is ``checkpoints`` in the log folder. All machines must see it.
        every_n_train_steps: optimizer steps from one checkpoint to the next.
        keep: how many of this run's newest checkpoints are kept, at least 2.
        monitor: name of a logged validation score; the best checkpoint by it is kept as well.
        mode: whether the best score is the ``max`` or the ``min``.
        stop_on_error: whether a checkpoint that cannot be written ends the training, or is only warned of.
        allow_change: continue with other settings than the checkpoint's; the differences are logged.

    Attributes:
        settings: what is compared with the checkpoint's, see :func:`~cropl.callbacks.identity.settings_of`; the
            command line sets it.

    Raises:
        ValueError: an option is out of range; at the start of a run, another one writes into the folder, or the
            checkpoint is damaged or was written with another base model or other settings.
        RunError: in all processes, a checkpoint cannot be written.
    """

    def __init__(
        self,
        dirpath: str | None = None,
        every_n_train_steps: int = 500,
        keep: int = 2,
        monitor: str | None = None,
        mode: Literal["min", "max"] = "max",
        stop_on_error: bool = True,
        allow_change: bool = False,
    ):
        if keep < 2:
            raise ValueError(f"keep {keep}: must be at least 2, or a damaged checkpoint would be the only one")
        if every_n_train_steps < 1:
            raise ValueError(f"every_n_train_steps {every_n_train_steps}: must be at least 1")
        if dirpath is not None and "://" in dirpath:
            raise ValueError(f"dirpath {dirpath}: must be a folder of a file system, where a rename is atomic")
        super().__init__(dirpath=dirpath, save_top_k=-1, every_n_train_steps=every_n_train_steps)
        self.every, self.keep, self.monitor, self.mode = every_n_train_steps, keep, monitor, mode
        self.stop_on_error, self.allow_change = stop_on_error, allow_change
        self.settings: dict[str, Any] = {}
        self._claim, self._signals = Claim(), Signals()
        self._best = Best(monitor, mode) if monitor is not None else None
        self._boundary: Boundary | None = None  # of the last step
        self._drawn: rng.State | None = None  # random state at the end of the last batch
        self._loaded: dict[str, Any] | None = None
        self._fresh: hyperparameters.Hyperparameters = []
        self._changed = False
        self._run = ""  # name of this run, see `run_of`: other runs' checkpoints are never deleted
        self._scored = False  # validated, and not yet compared
        self._early = False  # whether a validation was due when the last checkpoint was written
        self._log_dir = Path()

    def prepare(self, trainer: L.Trainer, config: dict[str, Any]) -> None:
        """What the command line knows, before anything of an earlier run is touched.

        Raises:
            RunError: another run writes into the folder.
        """
        self.settings = identity.settings_of(config)
        self.allow_change = self.allow_change or bool(config.get("allow_change"))
        environment: Any = getattr(trainer.strategy, "cluster_environment", None)
        if environment is None or not environment.creates_processes_externally:  # or the others would wait for this
            self._claim_folder(trainer)

    # Where checkpoints are, and which to take

    def folder(self, trainer: L.Trainer) -> Path:
        """Where this run's checkpoints are."""
        return Path(self.dirpath or Path(trainer.log_dir or trainer.default_root_dir) / "checkpoints").absolute()

    def _find_last_checkpoints(self, trainer: L.Trainer) -> set[str]:
        """For ``ckpt_path="last"``; what it holds is only read when it is loaded."""
        folder, first = self.folder(trainer), trainer.is_global_zero
        try:
            newest = last(folder, tell=first)
        except ValueError as error:
            raise ValueError(f"{error}: leave out --ckpt_path to start anew") from None
        if newest is None:
            if first:
                _log.warning("--ckpt_path last: no checkpoint lies in %s, and the training starts anew", folder)
            return set()
        attach(trainer).found.add(str(newest))
        return {str(newest)}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        folder = Path(trainer.strategy.broadcast(self.folder(trainer)))
        self.dirpath, self._log_dir = str(folder), Path(trainer.log_dir or trainer.default_root_dir)
        attach(trainer)
        if stage == "fit":
            together(lambda: self._claim_folder(trainer), "this run cannot start")

    def _claim_folder(self, trainer: L.Trainer) -> None:
        if trainer.is_global_zero and not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._claim.take(self.folder(trainer))

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._fresh = hyperparameters.capture(trainer)

    def on_sanity_check_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._active(trainer):
            self._signals.install(trainer)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._active(trainer):
            return
        self._signals.install(trainer)
        rng.keep_loaders_apart(trainer)
        loaded, self._loaded = self._loaded, None
        source, first = Path(self.last_model_path) if loaded is not None else None, trainer.is_global_zero
        self._run = together(lambda: run_of(self._path, source) if first else "", "this run cannot start")[0]
        if loaded is None or source is None:
            return
        trainer.fit_loop._load_combined_loader_states()  # lost where a schedule has asked for the number of steps
        rng.restore_own(trainer, loaded["rng"])
        self._drawn = rng.capture()  # a validation may come first
        if self._changed:
            hyperparameters.put_back(trainer, self._fresh)
        self._boundary = Boundary(loaded["loops"], self._drawn, loaded["validate"], loaded["known"])
        if lies_in(self._path, source):
            self._last_global_step_saved = trainer.global_step
        if self._best is not None:
            self._best.take_over(trainer, self._path, source, self._run)
        if self._boundary.validate:
            due.validate(trainer, pl_module)
            self._settle(trainer)

    # When to save

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._active(trainer):
            return
        self._drawn = rng.capture()
        if self._boundary is not None:
            self._boundary.skip_known(trainer)
        if trainer.fit_loop._should_accumulate():
            return
        self._boundary = Boundary.here(trainer, self._drawn)
        if trainer.global_step % self.every == 0:
            self._save(trainer)
        self._leave_if_asked(trainer)

    def on_validation_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        if trainer.world_size == 1:  # processes may have different numbers of batches: they meet at the end
            self._leave_if_asked(trainer)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._active(trainer) or trainer.sanity_checking or self._drawn is None:
            return
        rng.restore(self._drawn)  # training draws the same, validated or not
        self._scored = True
        if not due.ends_epoch(trainer):  # or early stopping is still to come
            self._settle(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Nothing is saved for the epoch's sake: steps alone count."""
        if self._active(trainer):
            self._settle(trainer)

    def _settle(self, trainer: L.Trainer) -> None:
        """Nothing is due any more: what is saved from now on knows the last validation."""
        if self._boundary is not None:
            self._boundary.settle(trainer)
        if self._scored and self._best is not None:
            self._compare(trainer, self._best)
        self._scored = False
        if not trainer.fit_loop._should_accumulate():  # or at the end of the step
            self._leave_if_asked(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._active(trainer) and self._boundary is not None:
            if self._early and not self._boundary.validate:  # written ahead of the last validation
                self._last_global_step_saved = 0
            self._save(trainer)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Nothing is saved: where it happened is unknown. Says from where a continuation would start."""
        self._claim.release()
        if self._active(trainer) and trainer.is_global_zero and self._boundary is not None:
            newest = next(iter(complete.complete(self._path)), None)
            rank_zero_info(f"stopped; `--ckpt_path last` continues from {newest or 'the start: nothing is saved yet'}")

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._active(trainer):
            if self._loaded is not None and self._loaded["validate"]:  # there was nothing left to train
                _log.warning("nothing is left to train, and the last validation was cut off: `cropl validate` does it")
            rank_zero_info(f"log: {self._log_dir}, last checkpoint: {self.last_model_path or 'none'}")

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self._claim.release()

    def _leave_if_asked(self, trainer: L.Trainer) -> None:
        if self._active(trainer) and not trainer.sanity_checking and (signals := self._signals.asked(trainer)):
            if self._boundary is not None:
                self._save(trainer)
            self._signals.leave(trainer, signals, self.last_model_path)

    def _compare(self, trainer: L.Trainer, best: Best) -> None:
        if best.beaten_by(score := best.score_of(trainer)):
            self._save(trainer)
            if self._last_global_step_saved == trainer.global_step:
                best.name, best.score = Path(self.last_model_path).name, score
                self.best_model_path, self.best_model_score = self.last_model_path, torch.tensor(score)
                best.note(trainer, self._path, self._run)

    # What is in it

    def _save(self, trainer: L.Trainer) -> None:
        if self._last_global_step_saved == trainer.global_step:
            return
        target = self._path / f"step-{trainer.global_step:06d}"
        try:
            self._save_checkpoint(trainer, str(target))
        except RunError as error:
            if self.stop_on_error:
                raise
            _log.error("%s", error)
            return
        self.last_model_path = self._last_checkpoint_saved = str(target)
        self._early = self._boundary is not None and self._boundary.validate
        if self._best is not None and self._best.name == target.name:  # saved once more, as it knows a validation now
            self._best.note(trainer, self._path, self._run)
        first, failed = trainer.is_global_zero, "cannot delete an old checkpoint"
        best = self._best.name if self._best is not None else ""
        together(lambda: prune(target, self._run, self.keep, best) if first else None, failed)

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        at = self._boundary or Boundary(checkpoint["loops"]["fit_loop"], rng.capture(), False)
        checkpoint["loops"]["fit_loop"] = at.loops
        checkpoint["cropl"] = {
            "rng": rng.of_all(at.drawn),
            "base": identity.base_of(pl_module),
            "settings": self.settings,
            "run": self._run,
            "validate": at.validate,
            "known": at.known,
        }

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        saved = due.saved_in(checkpoint)
        identity.check_base(saved["base"], identity.base_of(pl_module))
        if trainer.state.fn != TrainerFn.FITTING:
            return
        self._loaded, path = saved, Path(str(trainer.ckpt_path))
        self.last_model_path = str(path.parent if path.name == complete.WHOLE else path)
        self._changed = identity.check_settings(saved["settings"], self.settings, self.allow_change)

    def state_dict(self) -> dict[str, Any]:
        """Nothing: what is in the folder says it all."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing."""

    @property
    def _path(self) -> Path:
        return Path(str(self.dirpath))

    @staticmethod
    def _active(trainer: L.Trainer) -> bool:
        return trainer.state.fn == TrainerFn.FITTING and not trainer.fast_dev_run  # type: ignore[attr-defined]
