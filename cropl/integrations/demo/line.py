"""The line in front of the model: one piece of work at a time, in the order of asking; nobody holds a place in vain.

Work runs in a thread of its own and says what it does, step by step; whoever waits is told how many are ahead. Who
leaves while waiting is out of the line at once; who leaves while being served is served no further, and the next one
starts when the thread has really stopped.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from contextlib import suppress
from typing import Any

Event = dict[str, Any]
Work = Callable[[Callable[[], bool]], Iterator[Event]]
"""Given what tells whether it was cancelled, the steps."""

BEAT = 1.0
"""Seconds after which what was said last is said again: on it, a server notices that nobody listens any more."""


class Line:
    """Belongs to one event loop."""

    def __init__(self) -> None:
        self._places: list[asyncio.Event] = []

    def __len__(self) -> int:
        return len(self._places)

    async def run(self, work: Work) -> AsyncGenerator[Event, None]:
        """Wait for the turn, then work; yields `{"stage": "waiting", "ahead": n}` and what the work yields.

        Closing the iterator cancels the work. Errors of the work are raised here.
        """
        moved, cancelled = asyncio.Event(), threading.Event()
        self._places.append(moved)
        serving = False
        try:
            while ahead := self._places.index(moved):
                yield {"stage": "waiting", "ahead": ahead}
                moved.clear()
                await _within(moved.wait(), BEAT)
            serving = True
            async for event in self._serve(work, cancelled, moved):
                yield event
        finally:
            cancelled.set()
            if not serving:
                self._leave(moved)

    async def _serve(self, work: Work, cancelled: threading.Event, place: asyncio.Event) -> AsyncGenerator[Event, None]:
        said: asyncio.Queue[Event | BaseException | None] = asyncio.Queue()
        loop = asyncio.get_running_loop()

        def post(call: Callable[[Any], None], what: Any) -> None:
            with suppress(RuntimeError):  # the loop is closed: the server has ended
                loop.call_soon_threadsafe(call, what)

        def run() -> None:
            end: BaseException | None = None
            try:
                for event in work(cancelled.is_set):
                    post(said.put_nowait, event)
                    if cancelled.is_set():
                        break
            except BaseException as error:
                end = error
            post(self._leave, place)
            post(said.put_nowait, end)

        threading.Thread(target=run, name="demo", daemon=True).start()
        last: Event | None = None
        while True:
            event = await _within(said.get(), BEAT)
            if event is _LATE:
                if last is not None:
                    yield last
            elif event is None:
                return
            elif isinstance(event, BaseException):
                raise event
            else:
                last = event if "stage" in event else None
                yield event

    def _leave(self, place: asyncio.Event) -> None:
        self._places.remove(place)
        for other in self._places:
            other.set()


_LATE: Any = object()


async def _within(what: Coroutine[Any, Any, Any], seconds: float) -> Any:
    """What comes of it, or `_LATE`. Until Python 3.12 `asyncio.wait_for` may swallow a cancellation."""
    task = asyncio.ensure_future(what)
    try:
        done, _ = await asyncio.wait({task}, timeout=seconds)
        return task.result() if done else _LATE
    finally:
        task.cancel()
