"""A folder of checkpoints that one run at a time writes into, and the best checkpoint in it by a score."""

from __future__ import annotations

import json
import logging
import math
import os
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cropl.callbacks import complete
from cropl.errors import RunError

BEST, LOCK = "best.json", ".lock"

_log = logging.getLogger(__name__)


class Claim:
    """The operating system's lock on a folder: it ends with the process that holds it, however that ends."""

    def __init__(self) -> None:
        self._lock: FileLock | None = None

    def take(self, folder: Path) -> None:
        """Make the folder this run's, if it is not yet, and delete what killed runs have left half-written in it.

        Raises:
            RunError: another run writes into it.
        """
        if self._lock is not None:
            return
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / LOCK)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            raise RunError(
                f"another run writes into {folder}: wait for its end, or give this one a folder of its own "
                "(dirpath of its Checkpoint)"
            ) from None
        self._lock = lock
        if left := complete.tidy(folder):
            _log.warning("deleted what was not written to its end in %s: %s", folder, ", ".join(left))

    def release(self) -> None:
        """Let others have the folder."""
        if self._lock is not None:
            self._lock.release()
            self._lock = None


def last(folder: Path, tell: bool) -> Path | None:
    """The checkpoint that was saved last, of those that look sound; None if there never was one.

    Args:
        folder: of checkpoints.
        tell: warn of each that is damaged.

    Raises:
        ValueError: all are damaged.
    """
    found, damaged = complete.complete(folder), complete.damaged(folder)
    for path, wrong in damaged.items() if tell else ():
        _log.warning("the checkpoint %s is DAMAGED and left out: %s", path, wrong)
    if damaged and not found:
        raise ValueError(f"no checkpoint in {folder} is complete: leave out --ckpt_path to start anew")
    return found[0] if found else None


def warn_of_earlier(folder: Path) -> None:
    """A run that starts in a folder, anew or from a checkpoint of another one, tells what it finds."""
    if present := complete.complete(folder):
        _log.warning(
            "%s has checkpoints of an earlier run, up to %s: this one will replace those of the same steps; until it "
            "has saved, `--ckpt_path last` continues that run", folder, present[0].name,
        )  # fmt: skip


def prune(newest: Path, run: str, keep: int, best: Best | None) -> None:
    """Delete a run's older checkpoints; the newest is known to be complete, the best stays, and so do other runs'."""
    mine = [path for path in complete.complete(newest.parent) if complete.marker(path).get("run") == run]
    for path in [path for path in mine if path != newest][keep - 1 :]:
        if best is None or path.name != best.name:
            complete.remove(path)


class Best:
    """Which checkpoint has the best score; kept in a file of the folder, so that a continued run knows it.

    Args:
        monitor: the score's name.
        mode: whether the best is the ``max`` or the ``min``.
    """

    def __init__(self, monitor: str, mode: str):
        self.monitor, self.mode = monitor, mode
        self.name, self.score = "", math.nan

    def read(self, folder: Path, run: str) -> None:
        """Go on from what the folder says, if it is about this score, and a checkpoint of this run that is there."""
        try:
            said: dict[str, Any] = json.loads((folder / BEST).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return
        same = (said.get("monitor"), said.get("mode")) == (self.monitor, self.mode)
        if same and complete.marker(folder / str(said.get("name"))).get("run") == run:
            self.name, self.score = str(said["name"]), float(said["score"])

    def beaten_by(self, score: float) -> bool:
        """Whether a score is better; one that is no number never is."""
        if not math.isfinite(score):
            return False
        return math.isnan(self.score) or (score > self.score if self.mode == "max" else score < self.score)

    def write(self, folder: Path) -> None:
        """Note name and score in the folder."""
        said = {"monitor": self.monitor, "mode": self.mode, "name": self.name, "score": self.score}
        part = folder / f".{BEST}.partial"
        with open(part, "w", encoding="utf-8") as file:
            json.dump(said, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, folder / BEST)
        complete.sync_folder(folder)
