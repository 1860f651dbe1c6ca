"""Complete-or-absent checkpoints for any strategy: wraps how it saves and loads.

So whatever asks the trainer for a checkpoint, a callback, a user or SLURM's requeueing, gets one that is complete:
a folder, with a file that one process wrote, or with the parts of all.
"""

from __future__ import annotations

import errno
import logging
import os
import pickle
import shutil
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.strategies import ModelParallelStrategy, Strategy

from cropl.callbacks import complete
from cropl.callbacks.processes import gathered, together
from cropl.parallel import data_only

_log = logging.getLogger(__name__)


class Writer:
    """Saves and loads in place of a strategy's own methods.

    Args:
        trainer: its strategy is changed, once; use :func:`attach`.

    Raises:
        ValueError: the strategy is to write in another way, such as in the background.
    """

    def __init__(self, trainer: L.Trainer):
        self.trainer, self.strategy = trainer, trainer.strategy
        self.found: set[str] = set()
        """Checkpoints that were looked for, not named: the one before will do as well."""
        io = self.strategy.checkpoint_io
        if type(io) is not TorchCheckpointIO:
            raise ValueError(
                f"trainer.plugins has {type(io).__name__}, and checkpoints are written by Checkpoint itself, before "
                "training goes on: leave it out"
            )
        self._save, self._load = self.strategy.save_checkpoint, self.strategy.load_checkpoint
        self.strategy.save_checkpoint = self.save  # type: ignore[method-assign]
        self.strategy.load_checkpoint = self.load  # type: ignore[method-assign]

    def save(self, checkpoint: dict[str, Any], filepath: str | Path, storage_options: Any = None) -> None:
        """Make the folder ``filepath``. All processes call it.

        Raises:
            RunError: in all processes, if one of them cannot write; what was there before is untouched.
        """
        target = Path(self.strategy.broadcast(os.path.abspath(filepath)))
        partial, first = complete.hidden(target, "partial"), self.trainer.is_global_zero
        run = checkpoint.get("cropl", {}).get("run", "")
        failed = f"cannot save the checkpoint {target}", "earlier ones are as they were: `--ckpt_path last` takes them"
        try:
            together(lambda: complete.begin(target) if first else None, *failed)
            if writes_parts(self.strategy):
                together(lambda: self._save(checkpoint, partial), *failed)
                share = slice(self.trainer.global_rank, None, self.trainer.world_size)
                told = together(lambda: complete.synced(partial, share), *failed)
            else:
                told = together(lambda: complete.save_whole(checkpoint, partial) if first else {}, *failed)
            files = {name: digest for part in told for name, digest in part.items()}
            together(lambda: complete.finish(partial, target, files, run) if first else None, *failed)
        except BaseException:
            if first:
                shutil.rmtree(partial, ignore_errors=True)
            raise

    def load(self, checkpoint_path: str | Path, weights_only: bool | None = None) -> dict[str, Any]:
        """Load a checkpoint that is what was written, without running what it may contain.

        Raises:
            ValueError: it is damaged, or was not written to its end, or is no checkpoint of this strategy.
        """
        if "://" in str(checkpoint_path):
            return self._load(checkpoint_path, weights_only=weights_only is not False)
        path = self._sound(Path(self.strategy.broadcast(os.path.abspath(checkpoint_path))))
        path = self._readable(path)
        self.trainer._checkpoint_connector._ckpt_path = str(path)  # others ask the trainer which one it is
        try:
            with nullcontext() if weights_only is False else data_only():
                return self._load(path, weights_only=weights_only is not False)
        except pickle.UnpicklingError as error:
            raise ValueError(
                f"{path} holds more than numbers, texts and tensors, and is not loaded: {str(error).splitlines()[0]}"
            ) from None
        except (RuntimeError, EOFError, OSError) as error:
            cut = isinstance(error, EOFError) or getattr(error, "errno", None) == errno.EINVAL
            if "zip" not in str(error) and not cut:
                raise
            raise ValueError(f"{path} is damaged: {str(error).splitlines()[0]}") from None

    def _sound(self, path: Path) -> Path:
        """The named checkpoint, or the newest sound one of those that were looked for."""
        folder = path.parent if path.name == complete.WHOLE and (path.parent / complete.MARKER).exists() else path
        if not folder.is_dir():
            return path  # a file of another writer
        looked_for = str(path) in self.found
        for candidate in complete.complete(folder.parent) if looked_for else [folder]:
            wrong = self._damage(candidate)
            if not wrong:
                return candidate
            if not looked_for:
                raise ValueError(f"the checkpoint {folder} is damaged: {wrong}; `--ckpt_path last` takes a sound one")
            if self.trainer.is_global_zero:
                _log.warning("the checkpoint %s is DAMAGED: %s; trying the one before it", candidate, wrong)
        raise ValueError(f"no checkpoint in {folder.parent} is sound: leave out --ckpt_path to start anew")

    def _damage(self, folder: Path) -> str:
        """Each process reads some of the files, and all know what is wrong."""
        share = slice(self.trainer.global_rank, None, self.trainer.world_size)
        return next((wrong for wrong in gathered(complete.damage(folder, share=share)) if wrong), "")

    def _readable(self, path: Path) -> Path:
        """The file to load, or the folder where it has parts that this strategy can load."""
        if not path.is_dir():
            return path
        if (path / complete.WHOLE).is_file():
            return path / complete.WHOLE
        if not isinstance(self.strategy, ModelParallelStrategy):
            raise ValueError(
                f"{path} was written in parts by several processes: continue with --trainer.strategy fsdp2, also on "
                f"one device, or make one file of it with `cropl consolidate {path}`"
            )
        complete.check_metadata(path)
        return path


def attach(trainer: L.Trainer) -> Writer:
    """The writer of a trainer's strategy, made by the first who asks."""
    present = getattr(trainer.strategy.save_checkpoint, "__self__", None)
    return present if isinstance(present, Writer) else Writer(trainer)


def writes_parts(strategy: Strategy) -> bool:
    """Whether each process writes its own part of a checkpoint."""
    return isinstance(strategy, ModelParallelStrategy) and bool(strategy._save_distributed_checkpoint)
