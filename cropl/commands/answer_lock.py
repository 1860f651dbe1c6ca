"""One run at a time for a file of answers: a second one could drop the first one's lines, or cut the one it writes."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from cropl.errors import UsageError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]


@contextmanager
def alone(path: Path, resume: bool) -> Iterator[None]:
    """Hold a file of answers, from before it is read until after it is replaced; without `fcntl` it is only made.

    Args:
        path: the file; it is made where there is none, and goes again if the run fails before it has an answer.
        resume: whether it may be there.

    Raises:
        UsageError: another run holds it, or it is there and may not be.
    """
    path = path.resolve()
    made = not path.exists()
    held = _held(path, resume)
    try:
        yield
    except BaseException:
        with suppress(FileNotFoundError):
            if made and path.stat().st_size == 0:
                path.unlink()
        raise
    finally:
        held.close()


def _held(path: Path, resume: bool) -> IO[bytes]:
    """The locked file; closed where there are no locks, as it could then not be replaced either."""
    while True:
        try:
            file = open(path, "ab" if resume else "xb")  # noqa: SIM115
        except FileExistsError:
            raise UsageError(f"--out {path}: exists; give another name, or --resume to continue it") from None
        if fcntl is None:
            file.close()
            return file
        try:
            _lock(file, path)
            # Whoever held it until now may have replaced or removed it: the lock is then that of a file that is gone.
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file.fileno()), path.stat()):
                    return file
        except BaseException:
            file.close()
            raise
        file.close()


def _lock(file: IO[bytes], path: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise UsageError(f"--out {path}: another run is writing it; wait for its end, or give another name") from None
    except OSError as error:  # some network file systems
        reason = (error.strerror or str(error)).lower()
        print(f"cropl: warning: {path} cannot be locked ({reason}): let no other run write it", file=sys.stderr)
