"""One place that turns user errors into one line on stderr and an exit code.

Exit codes: 0 success, 1 a run that failed (no network, a model that cannot be loaded, a full disk), 2 a usage error
(bad flag, unknown recipe or key, a file or value the user gave that cannot be used). A user sees a sentence, never a
traceback; `CROPL_DEBUG=1` lets the exception through for whoever has to look inside.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import NoReturn

FAILED, USAGE, INTERRUPTED = 1, 2, 130


class UsageError(ValueError):
    """Something the user typed or handed over cannot be used; the message says what, and the remedy. Exit code 2."""


class RunError(RuntimeError):
    """The request was fine and the run failed (no network, unreadable weights, out of memory). Exit code 1."""


def one_line(error: BaseException) -> str:
    """The message of `error` on one line, without the quotes that KeyError puts around it."""
    if isinstance(error, MemoryError) and not str(error):
        return "out of memory"
    if isinstance(error, OSError) and error.strerror and error.filename is not None:
        return f"{error.filename}: {error.strerror.lower()}"
    text = str(error.args[0]) if isinstance(error, KeyError) and error.args else str(error)
    return " ".join(text.split()) or type(error).__name__


def exit_code(error: BaseException) -> int:
    """2 for what the user gave (ValueError, a missing path, a folder for a file), 1 for everything else."""
    usage = (ValueError, FileNotFoundError, IsADirectoryError, NotADirectoryError, FileExistsError)
    return USAGE if isinstance(error, usage) else FAILED


def guarded(run: Callable[[], int | None]) -> int:
    """Run a command: its exit code, with every expected error printed as `cropl: error: ...` on one line.

    Expected are ValueError (and so `UsageError`), OSError, `RunError`, MemoryError and an accelerator out of memory.
    Anything else is a bug of ours and keeps its traceback.
    """
    if os.environ.get("CROPL_DEBUG", "") not in ("", "0"):
        return run() or 0
    try:
        return run() or 0
    except KeyboardInterrupt:
        return _interrupted()
    except SystemExit as end:
        if not by_interrupt(end):
            raise
        return _interrupted()
    except BrokenPipeError:  # `cropl ... | head`: the reader has left, nothing is wrong
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except (ValueError, OSError, RunError, MemoryError) as error:
        print(f"cropl: error: {one_line(error)}", file=sys.stderr)
        return exit_code(error)
    except RuntimeError as error:
        if type(error).__name__ != "OutOfMemoryError":
            raise
        print(f"cropl: error: {one_line(error)} (a smaller batch size needs less)", file=sys.stderr)
        return FAILED


def by_interrupt(end: SystemExit) -> bool:
    """Whether it comes of Ctrl-C: so Lightning ends, with the exit code of a failure."""
    return isinstance(end.__context__, KeyboardInterrupt)


def _interrupted() -> int:
    print("cropl: interrupted", file=sys.stderr)
    return INTERRUPTED


def nearest(name: str, known: list[str] | tuple[str, ...], what: str = "known") -> str:
    """'; did you mean X?' for a near miss, else '; known: A, B, C' (nothing when there is nothing to offer)."""
    return did_you_mean(name, known) or (f"; {what}: {', '.join(known)}" if known else "")


def did_you_mean(name: str, known: Sequence[str], cutoff: float = 0.5) -> str:
    """'; did you mean X?' for a near miss; a cutoff of 0 takes whatever is nearest."""
    close = get_close_matches(name, known, n=1, cutoff=cutoff)
    return f"; did you mean {close[0]!r}?" if close else ""


def check_keys(given: dict[str, object], known: list[str] | tuple[str, ...], where: str) -> None:
    """Raise `UsageError` for the first key of `given` that is not in `known`, naming the nearest valid one."""
    for key in given:
        if key not in known:
            raise UsageError(f"{where}: unknown key {key!r}{nearest(str(key), known, 'valid keys')}")


def usage(message: str) -> NoReturn:
    """Raise `UsageError(message)` from an expression."""
    raise UsageError(message)
