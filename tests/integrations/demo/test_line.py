"""The line in front of the model: order, what is told to those who wait, and those who leave."""

from __future__ import annotations

import asyncio
import threading
import time

import pytest

from cropl.integrations.demo import line as module
from cropl.integrations.demo.line import Line


class Job:
    """Work that says "begun" and ends when it is told to, or cancelled."""

    def __init__(self):
        self.go, self.begun, self.ended = threading.Event(), threading.Event(), threading.Event()

    def __call__(self, cancelled):
        self.begun.set()
        try:
            yield {"stage": "begun"}
            deadline = time.monotonic() + 20
            while not self.go.is_set() and not cancelled() and time.monotonic() < deadline:
                time.sleep(0.005)
            yield {"done": not cancelled()}
        finally:
            self.ended.set()


async def until(condition):
    for _ in range(2000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("it never happened")


def test_one_at_a_time_in_the_order_of_asking():
    async def main():
        line, jobs, heard = Line(), [Job(), Job(), Job()], [[], [], []]

        async def listen(number):
            async for event in line.run(jobs[number]):
                heard[number].append(event)

        tasks = []
        for number in range(3):
            tasks.append(asyncio.create_task(listen(number)))
            await until(lambda: len(line) == len(tasks))
        await until(lambda: heard[2] == [{"stage": "waiting", "ahead": 2}] and jobs[0].begun.is_set())
        assert not jobs[1].begun.is_set()
        jobs[0].go.set()
        await until(lambda: heard[2][-1] == {"stage": "waiting", "ahead": 1} and jobs[1].begun.is_set())
        assert jobs[0].ended.is_set() and not jobs[2].begun.is_set()
        jobs[1].go.set()
        jobs[2].go.set()
        await asyncio.gather(*tasks)
        assert [events[-1] for events in heard] == [{"done": True}] * 3
        await until(lambda: len(line) == 0)

    asyncio.run(main())


def test_who_leaves_does_not_hold_up_the_others():
    async def main():
        line, first, second, third = Line(), Job(), Job(), Job()
        serving, waiting = line.run(first), line.run(second)
        assert await anext(serving) == {"stage": "begun"}
        assert await anext(waiting) == {"stage": "waiting", "ahead": 1}
        last = line.run(third)
        assert (await anext(last))["ahead"] == 2
        await waiting.aclose()  # leaves while waiting
        assert (await anext(last))["ahead"] == 1 and len(line) == 2
        await serving.aclose()  # leaves while being served
        assert await anext(last) == {"stage": "begun"} and first.ended.is_set() and not second.begun.is_set()
        third.go.set()
        assert [event async for event in last] == [{"done": True}]

    asyncio.run(main())


def test_a_cancelled_task_leaves_the_line():
    async def main():
        line, job = Line(), Job()

        async def listen():
            async for _ in line.run(job):
                pass

        task = asyncio.create_task(listen())
        await until(job.begun.is_set)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: job.ended.is_set() and len(line) == 0)

    asyncio.run(main())


def test_errors_are_raised_and_the_next_one_is_served(monkeypatch):
    monkeypatch.setattr(module, "BEAT", 0.01)

    def broken(cancelled):
        yield {"stage": "begun"}
        time.sleep(0.1)
        raise KeyError("what")

    async def main():
        line, heard = Line(), []
        with pytest.raises(KeyError):
            async for event in line.run(broken):
                heard.append(event)
        assert len(heard) > 2 and {event["stage"] for event in heard} == {"begun"}  # said again while it lasts
        assert [event async for event in line.run(lambda cancelled: iter([{"done": 1}]))] == [{"done": 1}]

    asyncio.run(main())
