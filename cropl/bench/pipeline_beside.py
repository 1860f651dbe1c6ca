"""A localizer's stage at work: batches sent ahead, answers checked, and kept busy while something else is measured."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterable, Iterator, Sequence
from itertools import cycle

from cropl.errors import RunError
from cropl.evaluation.pipeline.items import Asked, Located
from cropl.evaluation.pipeline.stage import Stage


def sent(stage: Stage, dealt: Iterable[list[Asked]], numbers: Iterator[int]) -> Iterator[int]:
    """Send one batch more than is taken, so that the stage never waits for work; yields the numbers to take."""
    waiting: list[int] = []
    for batch in dealt:
        waiting.append(next(numbers))
        stage.send(waiting[-1], batch)
        if len(waiting) > 1:
            yield waiting.pop(0)
    yield from waiting


def check(located: Sequence[list[Located]]) -> None:
    """Raise `RunError` if a question of these batches was not located."""
    problem = next((one.problem for batch in located for one in batch if one.problem is not None), None)
    if problem is not None:
        raise RunError(f"bench pipeline: a question was not located: {problem}")


class Beside:
    """A localizer that is kept busy by a thread, over and over, until it is stopped."""

    def __init__(self, stage: Stage, dealt: Sequence[list[Asked]], numbers: Iterator[int]) -> None:
        self._stage, self._dealt, self._numbers = stage, dealt, numbers
        self._stopped = False
        self._problem: Exception | None = None
        self._ends = [time.perf_counter()]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def stop(self) -> float:
        """Seconds of a batch.

        Raises:
            RunError: a question was not located.
        """
        self._stopped = True
        self._thread.join()
        if self._problem is not None:
            raise self._problem
        return (self._ends[-1] - self._ends[0]) / (len(self._ends) - 1)

    def _run(self) -> None:
        try:
            for number in sent(self._stage, self._until_stopped(), self._numbers):
                check([self._stage.take(number, len(self._dealt[0]))])
                self._ends.append(time.perf_counter())
        except Exception as error:  # whoever stops it is told
            self._problem = error

    def _until_stopped(self) -> Iterator[list[Asked]]:
        for batch in cycle(self._dealt):
            yield batch
            if self._stopped:
                return
