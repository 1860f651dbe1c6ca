"""The processes that make batches: they end with whom they work for, and one that is gone is named."""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Listener, wait
from typing import Any

from torch.utils.data import DataLoader

from cropl.errors import RunError, UsageError

PATIENCE = 5.0
"""Seconds in which the end of a worker shows after its connection broke."""


def end_with_parent() -> None:
    """End this worker when the process that it works for is gone.

    `torch` watches the parent, but a worker's parent is the forkserver, which in turn stays as long as a worker does: a
    training that is killed would leave them all behind for ever.
    """
    parent = multiprocessing.parent_process()

    def watch() -> None:
        if parent is not None:
            parent.join()
            os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def check_sockets() -> None:
    """UsageError where the folder for temporary files has too long a name for sockets, which batches come through.

    A worker would fail at its first batch without anybody's noticing, and the training wait for it for ever.
    """
    try:
        Listener(family="AF_UNIX").close()  # in the folder that workers take over
    except OSError as error:
        if "too long" not in str(error):
            raise
        folder = tempfile.gettempdir()
        raise UsageError(
            f"TMPDIR {folder}: too long a path for the sockets of workers; set it to a shorter one"
        ) from None


def batches(loader: DataLoader[Any]) -> Iterator[Any]:
    """What the workers made.

    Raises:
        RunError: a worker is gone; it names which.
    """
    made = iter(loader)
    while True:
        try:
            batch = _next(made)
        except StopIteration:
            return
        except RuntimeError as error:
            if not str(error).startswith("DataLoader worker"):
                raise
            raise RunError(str(error)) from error
        yield batch


def _next(made: Iterator[Any]) -> Any:
    """The connection of a worker that hands over a batch may break before torch misses the worker."""
    try:
        return next(made)
    except (EOFError, OSError) as error:
        gone = [] if str(error).startswith("Caught ") else _killed(getattr(made, "_workers", ()))
        if not gone:
            raise
        names = ", ".join(map(str, gone))
        reason = "gone before its batch was here: killed, perhaps as memory was short"
        raise RuntimeError(f"DataLoader worker (pid {names}) was {reason}") from error


def _killed(workers: Sequence[Any]) -> list[int]:
    """The workers that did not end by themselves; the first may take a moment to show, or torch raise in between."""
    running = {worker.sentinel: worker for worker in workers}
    until = time.monotonic() + PATIENCE
    while running and time.monotonic() < until:
        ended = [running.pop(sentinel) for sentinel in wait(list(running), until - time.monotonic())]
        if killed := [worker.pid for worker in ended if worker.exitcode]:
            return killed
    return []
