"""A batch that cannot be sent to the localizer: nobody waits for it; what came before it comes out, then its error."""

from __future__ import annotations

import dataclasses
import multiprocessing
import threading

import pytest

from cropl.evaluation.pipeline import LocalizedAhead, Pipeline, loader
from cropl.evaluation.pipeline.process import ProcessStage
from cropl.evaluation.pipeline.stage import LOCALIZER, ThreadStage
from cropl.testbed.samples import samples as scenes
from tests.evaluation.stages import PICTURE, Answers, Told, region_of, told


class Narrow(ThreadStage):
    """Has no memory to send what is `heavy ...`."""

    def send(self, number, batch):
        if any(one.question.startswith("heavy") for one in batch):
            raise MemoryError("no memory to send it")
        super().send(number, batch)


class Unsendable(str):
    def __reduce__(self):
        raise TypeError("it cannot be sent")


def drained(stream, within=20.0):
    """What came out of a stream, and what it raised; one that hangs fails."""
    got, raised = [], []

    def drain():
        try:
            got.extend(stream)  # appends one by one
        except BaseException as error:
            raised.append(error)

    thread = threading.Thread(target=drain, daemon=True)
    thread.start()
    thread.join(within)
    assert not thread.is_alive(), "it hangs"
    (error,) = raised
    return got, error


def asked(*questions):
    picture = scenes("test", 1)[0]
    return [[dataclasses.replace(picture, question=question)] for question in questions]


@pytest.mark.parametrize("window", [1, 3])
def test_answers_of_what_came_before_then_the_error(window):
    pairs = [(PICTURE, question) for question in ("slow 0", "fine 1", "heavy 2", "fine 3")]
    got, error = drained(Pipeline(pairs, Narrow(Told()), Answers(1), 1, window, 3), within=5)
    assert [result.answer for result in got] == ["SLOW 0", "FINE 1"]
    assert [result.region for result in got] == [region_of("slow 0"), region_of("fine 1")]
    assert isinstance(error, MemoryError) and str(error) == "no memory to send it"


def test_regions_of_what_came_before_then_the_error(monkeypatch):
    monkeypatch.setattr(loader, "ThreadStage", Narrow)
    got, error = drained(LocalizedAhead(asked("slow 0", "fine 1", "heavy 2", "fine 3"), Told(), 3), within=5)
    assert [batch["regions"] for batch in got] == [[region_of("slow 0")], [region_of("fine 1")]]
    assert isinstance(error, MemoryError) and str(error) == "no memory to send it"


def named_as_told():
    assert multiprocessing.current_process().name == LOCALIZER
    return told()


@pytest.mark.slow
@pytest.mark.parametrize("how", ["answered", "ahead"])
def test_so_it_is_with_a_process(how):
    questions = ["slow 0", "fine 1", Unsendable("fine 2"), "fine 3"]
    if how == "answered":
        pairs = [(PICTURE, question) for question in questions]
        got, error = drained(Pipeline(pairs, ProcessStage(named_as_told, 1), Answers(1), 1, 1, 3), within=60)
        assert [(result.answer, result.fallback) for result in got] == [("SLOW 0", None), ("FINE 1", None)]
    else:
        got, error = drained(LocalizedAhead(asked(*questions), named_as_told, 3), within=60)
        assert [batch["regions"] for batch in got] == [[region_of("slow 0")], [region_of("fine 1")]]
    assert isinstance(error, TypeError) and str(error) == "it cannot be sent"


@pytest.mark.parametrize("alive", [True, False])
def test_an_end_that_cannot_be_sent_closes_the_process(alive):
    closed = []

    class Unstarted(ProcessStage):
        def __init__(self):
            self._connection, self._ended = self, False

        def send(self, number, batch=None):
            if not alive:
                raise BrokenPipeError
            raise MemoryError

        def close(self):
            closed.append(True)

    Unstarted().end()
    assert closed == [True]
