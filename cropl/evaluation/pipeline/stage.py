"""The localizer as a stage of its own, in a process or in a thread: batches of questions go in, regions come out.

Whoever sends and whoever takes may be two threads; each batch that is taken must have been sent, in order, or the
stage be told that it will not be. A stage never hangs for good: a process that ends is noticed at once, one that is
silent for too long is given up, and what it did not locate comes back without a region.
"""

from __future__ import annotations

import logging
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import nullcontext
from queue import Empty, SimpleQueue
from typing import Any

import torch

from cropl.errors import RunError
from cropl.evaluation.pipeline.items import Asked, Failed, Located
from cropl.evaluation.pipeline.locate import Locator, locate_batch

_log = logging.getLogger(__name__)

LOCALIZER = "cropl localizer"
"""The name of the thread or process. A process imports the script that started it: by this name, code that would start
another one knows that it must not."""

STRIKES = 3
"""Batches in a row that may time out without a word before the stage is given up."""

READY = "ready"
Message = Any
"""`READY`, a `Failed` (it could not be loaded), or the number of a batch with its regions."""


class Stage(ABC):
    """A running localizer.

    Args:
        timeout: seconds to wait for the regions of a batch once the localizer is loaded; None waits for ever.
        raises: a stage that is lost raises, instead of giving no regions from then on.

    Attributes:
        lost: why there will be no more regions; None while there will.
    """

    def __init__(self, timeout: float | None, raises: bool) -> None:
        self.lost: str | None = None
        self._timeout, self._raises = timeout, raises
        self._ready, self._silent, self._ended = False, 0, False

    @abstractmethod
    def send(self, number: int, batch: Sequence[Asked]) -> None:
        """Hand over a batch; may block while the stage is busy."""

    def end(self) -> None:
        """No batch follows those that were sent: they are still located, and whoever takes another is told."""
        self._ended = True
        self._send_end()

    def take(self, number: int, size: int) -> list[Located]:
        """The regions of batch `number`, which has `size` questions.

        Raises:
            EOFError: it is behind the end.
            RunError: the localizer could not be loaded, or (with `raises`) is lost.
        """
        while self.lost is None:
            try:
                message = self._receive(self._timeout if self._ready else None)
            except EOFError:
                if self._ended:
                    raise
                self._lose(self._how_it_ended())
                continue
            if message is None:
                self._silent += 1
                self._give_up(number)
                if self._silent == STRIKES:
                    self._lose(f"the localizer said nothing for {STRIKES} times {self._timeout:g} s")
                    self.close()
                return [Located(None, f"no region within {self._timeout:g} s")] * size
            self._silent = 0
            if isinstance(message, Failed):
                raise RunError(f"the localizer could not be loaded: {message.reason}")
            if message == READY:
                self._ready = True
            elif message[0] == number:  # others come too late
                located: list[Located] = message[1]
                return located
        return [Located(None, self.lost)] * size

    @abstractmethod
    def close(self) -> None:
        """End it, whatever it is doing. May be called twice."""

    @abstractmethod
    def _send_end(self) -> None:
        """Hand over that no batch follows."""

    @abstractmethod
    def _receive(self, timeout: float | None) -> Message | None:
        """The next message; None if none came in time, EOFError when none will come."""

    @abstractmethod
    def _give_up(self, number: int) -> None:
        """Nobody waits any more for the batches up to this one."""

    @abstractmethod
    def _how_it_ended(self) -> str: ...

    def _lose(self, why: str) -> None:
        if self._raises or not self._ready:
            raise RunError(why)
        self.lost = why
        _log.warning("%s: from here on every token is kept", why)


class ThreadStage(Stage):
    """A localizer in a thread of this process; on a GPU it computes on a stream of its own."""

    def __init__(self, locator: Locator, timeout: float | None = None, raises: bool = False) -> None:
        super().__init__(timeout, raises)
        self._inbox: SimpleQueue[tuple[int, Sequence[Asked]] | None] = SimpleQueue()
        self._outbox: SimpleQueue[Message] = SimpleQueue()
        self._given_up = -1
        self._thread = threading.Thread(target=self._serve, args=(locator,), name=LOCALIZER, daemon=True)
        self._thread.start()

    def send(self, number: int, batch: Sequence[Asked]) -> None:
        self._inbox.put((number, batch))

    def close(self) -> None:
        self._given_up = 2**62
        self._inbox.put(None)
        if self._thread is not threading.current_thread():  # the garbage collector may close a pipeline in any thread
            # A forward cannot be interrupted: one that never ends is left behind.
            self._thread.join(timeout=5 if self.lost is None else 0)

    def _serve(self, locator: Locator) -> None:
        try:
            self._outbox.put(READY)
            with _own_stream(locator):
                while (sent := self._inbox.get()) is not None:
                    number, batch = sent
                    if number > self._given_up:
                        self._outbox.put((number, locate_batch(locator, batch)))
        finally:
            self._outbox.put(EOFError())

    def _send_end(self) -> None:
        self._inbox.put(None)

    def _receive(self, timeout: float | None) -> Message | None:
        try:
            message = self._outbox.get(timeout=timeout)
        except Empty:
            return None
        if isinstance(message, EOFError):
            raise message
        return message

    def _give_up(self, number: int) -> None:
        self._given_up = number

    def _how_it_ended(self) -> str:
        return "the localizer's thread ended"


def _own_stream(locator: Locator) -> Any:
    """On a GPU, a stream that waits for what was done so far; the regions themselves are read on the CPU."""
    device = getattr(getattr(locator, "vlm", None), "device", None)
    if device is None or device.type != "cuda":
        return nullcontext()
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    return torch.cuda.stream(stream)
