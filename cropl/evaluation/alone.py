"""Who may work on a folder of results: one whole run, or the parts of one."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from cropl.errors import RunError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

NAME = ".lock"

_log = logging.getLogger(__name__)


@contextmanager
def working_in(folder: Path, shared: bool) -> Iterator[None]:
    """Hold a folder; where files cannot be locked, only say so.

    Args:
        folder: made where it is missing.
        shared: with others that share it, such as the other parts of a run; else alone.

    Raises:
        RunError: somebody else works there, and not as one of these.
    """
    folder.mkdir(parents=True, exist_ok=True)
    held = _held(folder / NAME, shared)
    try:
        yield
    finally:
        if not shared:
            with suppress(FileNotFoundError):
                (folder / NAME).unlink()
        held.close()


def _held(path: Path, shared: bool) -> IO[bytes]:
    while True:
        file = open(path, "ab")  # noqa: SIM115
        try:
            if fcntl is None:
                return file
            fcntl.flock(file, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
            # Whoever held it until now may have removed it: the lock is then that of a file that is gone.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
        except BlockingIOError:
            file.close()
            raise RunError(
                f"{path.parent}: another run is writing there; wait for its end, or give another --out"
            ) from None
        except OSError as error:  # some network file systems
            _log.warning("%s cannot be locked (%s): let no other run write there", path.parent, error.strerror)
            return file
        file.close()
