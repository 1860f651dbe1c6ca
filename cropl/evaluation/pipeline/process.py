"""The localizer in a process of its own, with its own threads and device."""

from __future__ import annotations

import multiprocessing
import signal
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

import torch
from transformers.utils import logging as transformers_log

from cropl.evaluation.pipeline.items import Asked, Failed, reason
from cropl.evaluation.pipeline.locate import Locator, locate_batch
from cropl.evaluation.pipeline.stage import LOCALIZER, READY, Message, Stage


class ProcessStage(Stage):
    """A localizer in a process of its own, which ends with this one, whatever ends it.

    Args:
        load: makes the localizer, in that process; must be picklable.
        threads: that torch uses there; None leaves its default.
        timeout, raises: see `Stage`.
    """

    def __init__(
        self,
        load: Callable[[], Locator],
        threads: int | None = None,
        timeout: float | None = None,
        raises: bool = False,
    ) -> None:
        super().__init__(timeout, raises)
        context = multiprocessing.get_context("spawn")
        # A pipe, not a queue: with the other end closed here, the process's death is an EOF, also amid a message.
        self._connection, theirs = context.Pipe()
        self._given_up: Any = context.RawValue("q", -1)
        self._process = context.Process(
            target=_serve, args=(theirs, self._given_up, load, threads), name=LOCALIZER, daemon=True
        )
        with _interrupts_held_back():
            self._process.start()
        theirs.close()

    @property
    def pid(self) -> int | None:
        """Of the process."""
        return self._process.pid

    def send(self, number: int, batch: Sequence[Asked]) -> None:
        with suppress(OSError):  # it has ended: whoever takes sees why
            self._connection.send((number, batch))

    def close(self) -> None:
        if self._process.is_alive():
            self._process.terminate()  # it holds nothing that could be lost
            self._process.join(timeout=5)
        if self._process.is_alive():
            self._process.kill()
        self._process.join()

    def _send_end(self) -> None:
        try:
            self._connection.send(None)
        except Exception:  # it has ended, or there is not even memory for this
            self.close()

    def _receive(self, timeout: float | None) -> Message | None:
        try:
            return self._connection.recv() if self._connection.poll(timeout) else None
        except OSError:
            raise EOFError from None

    def _give_up(self, number: int) -> None:
        self._given_up.value = number

    def _how_it_ended(self) -> str:
        self._process.join(timeout=5)
        code = self._process.exitcode
        told = f"the localizer's process ended ({f'signal {-code}' if code and code < 0 else f'exit code {code}'})"
        if not self._ready:
            told += ' before it was loaded; a script that starts one keeps its work under `if __name__ == "__main__":`'
        return told


def _serve(connection: Any, given_up: Any, load: Callable[[], Locator], threads: int | None) -> None:
    """The process: until the other end is closed."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches all processes of a terminal; the first one ends this
    transformers_log.set_verbosity_error()
    transformers_log.disable_progress_bar()
    if threads is not None:
        torch.set_num_threads(threads)
    try:
        try:
            locator = load()
        except Exception as error:
            connection.send(Failed(reason(error)))
            return
        connection.send(READY)
        while (sent := connection.recv()) is not None:
            number, batch = sent
            if number > given_up.value:
                connection.send((number, locate_batch(locator, batch)))
    except (EOFError, OSError):
        return


@contextmanager
def _interrupts_held_back() -> Iterator[None]:
    """A process started here never sees Ctrl-C, not even while it still imports."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)
