"""A folder of checkpoints that one run at a time writes into, and whose they are."""

from __future__ import annotations

import logging
from pathlib import Path
from uuid import uuid4

from filelock import FileLock, Timeout

from cropl.callbacks import complete
from cropl.errors import RunError

LOCK = ".lock"

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
        ValueError: all are damaged; what to do is for the caller to say.
    """
    found, damaged = complete.complete(folder), complete.damaged(folder)
    for path, wrong in damaged.items() if tell else ():
        _log.warning("the checkpoint %s is DAMAGED and left out: %s", path, wrong)
    if damaged and not found:
        raise ValueError(f"no checkpoint in {folder} is complete")
    return found[0] if found else None


def warn_of_earlier(folder: Path) -> None:
    """A run that starts in a folder, anew or from a checkpoint of another one, tells what it finds."""
    if present := complete.complete(folder):
        _log.warning(
            "%s has checkpoints of an earlier run, up to %s: this one will replace those of the same steps; until it "
            "has saved, `--ckpt_path last` continues that run", folder, present[0].name,
        )  # fmt: skip


def run_of(folder: Path, loaded: Path | None) -> str:
    """The name of a run that starts in a folder: that of the run that it continues there, or a new one.

    It continues a run where it has loaded the newest sound checkpoint of it in the folder. From an earlier one, or from
    one in another folder, it is a branch: what was saved there since is none of its own, and not its to delete.

    Args:
        folder: of checkpoints.
        loaded: the checkpoint that the run starts from, if any.
    """
    if loaded is not None and _is_newest(folder, loaded):
        return str(complete.marker(loaded)["run"])
    warn_of_earlier(folder)
    return uuid4().hex


def lies_in(folder: Path, checkpoint: Path) -> bool:
    """Whether a checkpoint is one of this folder's."""
    return checkpoint.resolve().parent == folder.resolve()


def _is_newest(folder: Path, loaded: Path) -> bool:
    own = complete.marker(loaded)
    if not lies_in(folder, loaded) or not own.get("run"):
        return False
    others = ((path, complete.marker(path)) for path in complete.complete(folder))
    later = (path for path, said in others if said.get("run") == own["run"] and said["number"] > own["number"])
    return all(complete.damage(path) for path in later)


def prune(newest: Path, run: str, keep: int, best: str) -> None:
    """Delete a run's older checkpoints; the newest is known to be complete, the best stays, and so do other runs'."""
    mine = [path for path in complete.complete(newest.parent) if complete.marker(path).get("run") == run]
    for path in [path for path in mine if path != newest][keep - 1 :]:
        if path.name != best:
            complete.remove(path)
