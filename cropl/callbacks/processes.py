"""What all processes of a training do together, so that none waits for one that has failed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist
from torch.distributed.checkpoint.api import CheckpointException

from cropl.errors import RunError

T = TypeVar("T")


def gathered(value: T) -> list[T]:
    """The values of all processes, by rank. All of them call it; they trust one another."""
    if not (dist.is_available() and dist.is_initialized()):
        return [value]
    values: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def together(action: Callable[[], T], what: str, remedy: str = "") -> list[T]:
    """Run an action in all processes; if it fails in any, it fails in all.

    Args:
        action: what this process does; it must not leave others waiting for it if it fails.
        what: begins the message.
        remedy: ends it.

    Raises:
        RunError: what went wrong, and in which process.
    """
    result: Any = None
    error: BaseException | None = None
    try:
        result = action()
    except (KeyboardInterrupt, SystemExit):
        raise
    except BaseException as caught:  # torch's errors of sharded checkpoints are not Exceptions
        error = caught
    told = gathered((result, None if error is None else _text(error)))
    wrong = [(rank, text) for rank, (_, text) in enumerate(told) if text is not None]
    if wrong:
        where = f"process {wrong[0][0]}: " if len(told) > 1 else ""
        raise RunError(f"{what}: {where}{wrong[0][1]}{remedy and '; '}{remedy}") from error
    return [value for value, _ in told]


def _text(error: BaseException) -> str:
    if isinstance(error, CheckpointException) and error.failures:
        error = next(iter(error.failures.values()))[0]
    plain = isinstance(error, (OSError, ValueError, RunError))
    return str(error) if plain else f"{type(error).__name__}: {error}"
