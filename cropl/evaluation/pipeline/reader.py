"""Reads the pipeline's stream in a thread of its own, no further ahead than it may."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from queue import SimpleQueue
from typing import Any

from cropl.evaluation.pipeline.items import Asked
from cropl.evaluation.pipeline.stage import Stage


@dataclass(frozen=True)
class Read:
    """A batch, which of all it is, and the pairs as the stream gave them."""

    number: int
    pairs: list[Any]
    asked: list[Asked]


class Reader:
    """Deals out batches of consecutive pairs: first to whoever calls `next`, then to the localizer.

    Args:
        pairs: the stream.
        stage: the localizer.
        batch_size: pairs of a batch; the last one may have fewer.
        ahead: batches that are dealt out and not asked for yet, at most. One more is read, and waits.

    Attributes:
        error: what the stream raised, or why a batch of it could not be sent; what came before it is dealt out all the
            same. A batch that could not be sent has no regions to take: that is an EOFError of the stage.
    """

    def __init__(self, pairs: Iterable[Any], stage: Stage, batch_size: int, ahead: int) -> None:
        self.error: BaseException | None = None
        self._pairs, self._stage, self._batch_size = pairs, stage, batch_size
        self._free, self._stopped = threading.Semaphore(ahead), False
        self._dealt: SimpleQueue[Read | None] = SimpleQueue()
        threading.Thread(target=self._run, name="cropl pairs", daemon=True).start()

    def next(self) -> Read | None:
        """The next batch; None at the end."""
        batch = self._dealt.get()
        self._free.release()
        return batch

    def stop(self) -> None:
        """Read no further. A stream that blocks is left to itself."""
        self._stopped = True
        self._free.release()

    def _run(self) -> None:
        try:
            for number, (pairs, asked) in enumerate(self._batches()):
                self._free.acquire()
                if self._stopped:
                    return
                self._dealt.put(Read(number, pairs, asked))
                self._send(number, asked)
        except BaseException as error:
            self.error = error
        finally:
            self._dealt.put(None)

    def _send(self, number: int, asked: list[Asked]) -> None:
        try:
            self._stage.send(number, asked)
        except BaseException as error:
            self.error = error
            self._stage.end()  # the batch is dealt out: whoever takes its regions would wait for ever
            raise

    def _batches(self) -> Iterator[tuple[list[Any], list[Asked]]]:
        pairs: list[Any] = []
        asked: list[Asked] = []
        try:
            for pair in self._pairs:
                if self._stopped:
                    return
                pairs.append(pair)
                asked.append(Asked.of(pair))
                if len(pairs) == self._batch_size:
                    yield pairs, asked
                    pairs, asked = [], []
        except Exception as error:
            self.error = error
        if pairs:
            yield pairs, asked
