"""Batches with regions found ahead: those of one step after the other, bounded, and nothing left behind."""

from __future__ import annotations

import dataclasses
import threading
import time

import pytest
import torch

from cropl.errors import RunError
from cropl.evaluation.pipeline import loader as loading
from cropl.evaluation.pipeline.loader import LocalizedAhead
from cropl.evaluation.pipeline.stage import ThreadStage
from cropl.grid import Region
from cropl.testbed.samples import samples as scenes
from tests.evaluation.stages import Told, region_of, told
from tests.evaluation.test_pipeline_process import gone


class Counting:
    """A loader that counts what was read of it."""

    def __init__(self, batches):
        self.batches, self.read = batches, 0

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        for batch in self.batches:
            self.read += 1
            yield batch


def asked(*questions, size=1):
    picture = scenes("test", 1)[0]
    rows = [dataclasses.replace(picture, key=str(i), question=question) for i, question in enumerate(questions)]
    return [rows[start : start + size] for start in range(0, len(rows), size)]


def localizing() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name in ("cropl localizer", "cropl pairs")]


def ended(within: float = 5) -> bool:
    deadline = time.monotonic() + within
    while localizing() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not localizing()


def test_batches_come_in_order_with_their_regions():
    batches = asked(*(f"fine {i}" for i in range(7)), size=3)
    marked = [batches[0], {"samples": batches[1], "valid": [True, True, False]}, batches[2]]
    loader = LocalizedAhead(marked, Told(), 2)
    assert len(loader) == 3
    for _ in range(2):  # each iteration has a localizer of its own
        found = list(loader)
        assert [batch["samples"] for batch in found] == batches
        assert [batch["regions"] for batch in found] == [[region_of(one.question) for one in each] for each in batches]
        assert found[1]["valid"] == [True, True, False] and "valid" not in found[0]
        assert ended()


@pytest.mark.parametrize("ahead", [1, 3])
def test_no_more_is_read_than_may_be_ahead(ahead):
    loader = Counting(asked(*(f"fine {i}" for i in range(20))))
    most = 0
    for taken, _ in enumerate(LocalizedAhead(loader, Told(), ahead), start=1):
        time.sleep(0.02)  # the reader gets as far as it may
        assert loader.read <= taken + ahead + 1
        most = max(most, loader.read - taken)
    assert most == ahead + 1 and loader.read == 20


def test_the_localizer_works_while_a_batch_is_answered():
    localizer = Told()
    stream = iter(LocalizedAhead(asked("fine 0", "fine 1", "fine 2"), localizer, 2))
    next(stream)
    deadline = time.monotonic() + 5
    while len(localizer.batches) < 3 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(localizer.batches) == 3
    stream.close()
    assert ended()


class Fallbacks(Told):
    """Counts answers that are no region, as a localizer that decodes freely does."""

    fallbacks = 0

    def locate(self, images, questions):
        self.fallbacks += 1
        self.batches.append(list(questions))
        return [Region.full()] * len(questions)


def test_an_answer_that_is_no_region_is_the_whole_image_as_in_a_step():
    localizer = Fallbacks()
    (batch,) = LocalizedAhead(asked("fine 0", "fine 1", size=2), localizer, 1)
    assert batch["regions"] == [Region.full()] * 2 and localizer.batches == [["fine 0", "fine 1"]]


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_what_fails_raises():
    def broken_off():
        yield asked("fine 0")[0]
        raise OSError("the disk is gone")

    with pytest.raises(ValueError, match="at least 1"):
        LocalizedAhead([], Told(), 0)
    with pytest.raises(RunError, match="sample '1': it could not be localized: .*no memory"):
        list(LocalizedAhead(asked("fine 0", "lost 1", "fine 2"), Told(), 2))
    with pytest.raises(RunError, match="thread ended"):
        list(LocalizedAhead(asked("fine 0", "exit 1", "fine 2"), Told(), 2))
    stream = iter(LocalizedAhead(broken_off(), Told(), 2))
    assert next(stream)["regions"] == [region_of("fine 0")]
    with pytest.raises(OSError, match="the disk is gone"):
        next(stream)
    for image in (b"no image", None):
        bad = [[dataclasses.replace(asked("fine 0")[0][0], image=image)]]
        with pytest.raises(ValueError, match="sample '0': ") as error:
            list(LocalizedAhead(bad, Told(), 2))
        with pytest.raises(ValueError) as without:
            bad[0][0].picture()
        assert str(error.value) == str(without.value)
    assert ended()


@pytest.fixture
def eight_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(8)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize(
    ("threads", "device", "theirs", "ours"),
    [(None, "cpu", 4, 4), (3, "cpu", 3, 5), (8, "cpu", 8, 1), (20, "cpu", 20, 1), (3, "cuda:0", 3, 8)],
)
def test_the_process_takes_its_threads_from_this_one(monkeypatch, eight_threads, threads, device, theirs, ours):
    given = []

    class Stage(ThreadStage):
        """In place of a process."""

        def __init__(self, load, threads, raises):
            given.append(threads)
            super().__init__(load(), raises=raises)

    monkeypatch.setattr(loading, "ProcessStage", Stage)
    for questions, wrong in ((("fine 0", "fine 1"), None), (("fine 0", "lost 1"), RunError)):
        stream = iter(LocalizedAhead(asked(*questions), told, 1, device, threads))
        next(stream)
        assert torch.get_num_threads() == ours
        if wrong is None:
            assert len(list(stream)) == 1
        else:
            with pytest.raises(wrong, match="could not be localized"):
                next(stream)
        assert torch.get_num_threads() == 8 and given.pop() == theirs
    streams = [iter(LocalizedAhead(asked("fine 0"), told, 1, device, threads)) for _ in range(2)]
    for stream in streams:
        next(stream)
    for stream in streams:  # the first one is not within the second one
        stream.close()
    assert torch.get_num_threads() == 8


def test_a_thread_takes_none(eight_threads):
    stream = iter(LocalizedAhead(asked("fine 0"), Told(), 1, "cpu"))
    next(stream)
    assert torch.get_num_threads() == 8
    stream.close()


@pytest.mark.slow
def test_in_a_process():
    batches = asked(*(f"fine {i}" for i in range(5)), size=2)
    found = list(LocalizedAhead(batches, told, 2))
    assert [batch["regions"] for batch in found] == [[region_of(one.question) for one in each] for each in batches]
    with pytest.raises(RunError, match="signal 9"):
        list(LocalizedAhead(asked("fine 0", "die 1", "fine 2"), told, 2))
    with pytest.raises(RunError, match="could not be loaded"):
        list(LocalizedAhead(batches, "./nowhere", 2, "cpu"))


@pytest.mark.slow
def test_the_process_ends_with_the_iteration(monkeypatch):
    started = []

    class Noted(loading.ProcessStage):
        def __init__(self, *args, **options):
            super().__init__(*args, **options)
            started.append(self.pid)

    monkeypatch.setattr(loading, "ProcessStage", Noted)
    stream = iter(LocalizedAhead(asked(*(f"fine {i}" for i in range(9))), told, 2))
    next(stream)
    del stream  # broken off
    list(LocalizedAhead(asked("fine 0"), told, 2))
    assert len(started) == 2 and all(gone(pid, within=10) for pid in started)
