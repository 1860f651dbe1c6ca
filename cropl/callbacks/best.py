"""The best checkpoint in a folder by a score, kept in a file there, so that a continued run knows it."""

from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path
from typing import Any

import lightning as L

from cropl.callbacks import complete
from cropl.callbacks.processes import together
from cropl.callbacks.run_folder import lies_in

BEST = "best.json"
"""In a folder of checkpoints: the ``name``, ``score`` and ``seal`` of a ``run``'s best by ``monitor`` and ``mode``."""

_log = logging.getLogger(__name__)


class Best:
    """Which checkpoint has the best score; the same on all processes, one of which reads and writes the file.

    The file holds the seal of the checkpoint that had the score, as another one may have got its name since, and the
    run whose best it is, which may have begun after that checkpoint.

    Args:
        monitor: the score's name.
        mode: whether the best is the ``max`` or the ``min``.
    """

    def __init__(self, monitor: str, mode: str):
        self.monitor, self.mode = monitor, mode
        self.name, self.score = "", math.nan

    def take_over(self, trainer: L.Trainer, folder: Path, loaded: Path, run: str) -> None:
        """Go on from what the folder says, and note it as this run's. All processes call it.

        What it says counts if it is about this score, and about a checkpoint that is still as it was scored, and that
        the loaded one was saved after, or is.

        Raises:
            RunError: in all processes, the folder cannot be read or written.
        """
        first, failed = trainer.is_global_zero, "cannot go on from the best checkpoint"
        told = together(lambda: self._said(folder, loaded) if first else None, failed)[0]
        self.name, self.score = told or ("", math.nan)
        if self.name:
            self.note(trainer, folder, run)

    def note(self, trainer: L.Trainer, folder: Path, run: str) -> None:
        """Write name and score down in the folder. All processes call it.

        Raises:
            RunError: in all processes, it cannot be written.
        """
        together(lambda: self._write(folder, run) if trainer.is_global_zero else None, "cannot note the best")

    def score_of(self, trainer: L.Trainer) -> float:
        """The score of the last validation, as the first process has it. All processes call it.

        Raises:
            ValueError: it logs no such score.
        """
        scores = {name: float(score) for name, score in trainer.callback_metrics.items()}
        if self.monitor not in scores:
            raise ValueError(f"monitor {self.monitor!r}: validation logs no such score, but {', '.join(scores)}")
        return float(trainer.strategy.broadcast(scores[self.monitor]))

    def beaten_by(self, score: float) -> bool:
        """Whether a score is better; one that is no number never is."""
        if not math.isfinite(score):
            return False
        return math.isnan(self.score) or (score > self.score if self.mode == "max" else score < self.score)

    def _said(self, folder: Path, loaded: Path) -> tuple[str, float] | None:
        """Name and score that the file has, if they hold for a run that goes on from the loaded checkpoint."""
        try:
            said: dict[str, Any] = json.loads((folder / BEST).read_text(encoding="utf-8"))
            name, score, about = str(said["name"]), float(said["score"]), (said["monitor"], said["mode"])
        except (OSError, ValueError, KeyError, TypeError):
            return None
        if about != (self.monitor, self.mode) or not lies_in(folder, loaded):
            return None
        there, here = complete.marker(folder / name), complete.marker(loaded)
        same = bool(there and here) and complete.seal(folder / name) == said.get("seal")
        if same and there["number"] <= here["number"] and here.get("run") in (said.get("run"), there.get("run")):
            return name, score
        _log.warning(
            "the best checkpoint in %s, %s, is another run's, was saved after the one that is continued, or has been "
            "replaced: the best is found anew", folder, name,
        )  # fmt: skip
        return None

    def _write(self, folder: Path, run: str) -> None:
        said = {"monitor": self.monitor, "mode": self.mode, "name": self.name, "score": self.score}
        part = folder / f".{BEST}.partial"
        with open(part, "w", encoding="utf-8") as file:
            json.dump({**said, "seal": complete.seal(folder / self.name), "run": run}, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, folder / BEST)
        complete.sync_folder(folder)
