"""Ahead-of-time localization: while one batch is answered, the localizer works on those behind it (paper, 4.4).

Two stages over a stream of (image, question), which may have no end. The stream is read by a thread, so slow sources
and slow stages overlap; it is read no further than a few batches ahead, so memory does not grow. Batches are the same
ones whatever the timing, so that two runs compute the same.
"""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import torch

from cropl.evaluation.pipeline.answer import AnswerStage
from cropl.evaluation.pipeline.items import Failed, Located
from cropl.evaluation.pipeline.locate import Load, Locator
from cropl.evaluation.pipeline.process import ProcessStage
from cropl.evaluation.pipeline.reader import Read, Reader
from cropl.evaluation.pipeline.stage import Stage, ThreadStage
from cropl.grid import Region
from cropl.models.vlm import VLM, load_vlm
from cropl.pruning import InnerLLM, PreLLM


@dataclass(frozen=True)
class Result:
    """What became of one pair.

    Attributes:
        pair: as the stream gave it, with whatever stood behind the question.
        answer: None where there is none.
        region: as located; None where there is none.
        kept, total: visual tokens that the last decoder layer saw, and those of the image; None without an answer.
        fallback: why there was no region, so that every token was kept; None where there was one.
        error: why there is no answer; None where there is one.
        localize_seconds, answer_seconds: its shares of its batches' times.
    """

    pair: Any
    answer: str | None = None
    region: Region | None = None
    kept: int | None = None
    total: int | None = None
    fallback: str | None = None
    error: str | None = None
    localize_seconds: float = 0.0
    answer_seconds: float = 0.0


class Pipeline(Iterator[Result]):
    """Results in the order of the stream, see `pipeline`. Leave it by its end, `close()` or as a context.

    Attributes:
        done, fallbacks, errors: results so far, those that kept every token for want of a region, and those without an
            answer.
        waited: seconds so far in which the model had nothing to do, because the localizer was not that far.
        stage: the localizer.
    """

    def __init__(
        self, pairs: Iterable[Any], stage: Stage, answerer: AnswerStage, batch_size: int, window: int, ahead: int
    ) -> None:
        self.done = self.fallbacks = self.errors = 0
        self.waited = 0.0
        self.stage, self._answerer, self._window = stage, answerer, window
        self._results: deque[Result] = deque()
        self._reader = Reader(pairs, stage, batch_size, ahead * window)
        self._ended = self._closed = False

    def __iter__(self) -> Pipeline:
        return self

    def __next__(self) -> Result:
        try:
            while not self._results and not self._ended:
                self._answer_window()
        except BaseException:
            self.close()
            raise
        if self._results:
            return self._results.popleft()
        error, closed = self._reader.error, self._closed
        self.close()
        if error is not None and not closed:
            raise error
        raise StopIteration

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __del__(self) -> None:
        if hasattr(self, "_closed"):
            self.close()

    def close(self) -> None:
        """End both stages, also amid the stream; what is not out yet is dropped."""
        self._ended = self._closed = True
        self._results.clear()
        self._reader.stop()
        self.stage.close()

    def _answer_window(self) -> None:
        read: list[Read] = []
        located: list[Located] = []
        while len(read) < self._window and not self._ended:
            batch = self._reader.next()
            if batch is None:
                self._ended = True
                break
            began = time.perf_counter()
            try:
                located += self.stage.take(batch.number, len(batch.asked))
            except EOFError:  # the reader has the error
                self._ended = True
                break
            self.waited += time.perf_counter() - began
            read.append(batch)
        pairs = [pair for batch in read for pair in batch.pairs]
        answers = self._answerer([one for batch in read for one in batch.asked], located)
        for pair, where, answer in zip(pairs, located, answers, strict=True):
            self._results.append(_result(pair, where, answer))
            self.done += 1
            self.errors += isinstance(answer, Failed)
            self.fallbacks += where.region is None and not isinstance(answer, Failed)


def pipeline(
    pairs: Iterable[Any],
    localizer: str | Locator | Callable[[], Locator],
    model: str | VLM,
    method: InnerLLM | PreLLM | None = None,
    *,
    budget: int | float | None = None,
    factor: float | None = None,
    batch_size: int = 8,
    window: int = 1,
    ahead: int = 2,
    max_new_tokens: int = 32,
    device: str | None = None,
    localizer_device: str | None = None,
    dtype: torch.dtype | str | None = None,
    threads: int | None = None,
    timeout: float | None = 300.0,
    must_localize: bool = False,
) -> Pipeline:
    """Answer a stream of questions about images, localizing ahead. Answers are those that one stage after the other
    would give.

    One bad sample never stops the rest. Without a region (an unreadable image, a localizer that fails, runs out of
    memory or takes too long) every token is kept, and the result says why; where the model itself fails on a sample it
    is asked again alone, and the error is its result's. If the localizer ends by itself, what it has not located is
    treated likewise, or, with `must_localize`, raises. A localizer that cannot be loaded always raises.

    Args:
        pairs: `(image, question)` in an iterable, which may be endless; it is read in another thread. An image is a
            path, encoded bytes, or a PIL image; an exception in its place is that sample's error. What stands behind
            the question comes back in the result's `pair`.
        localizer: name or folder of one, which is loaded in a process of its own; or a picklable function that makes
            one there; or an object with `locate`, which runs in a thread (on a GPU on its own stream).
        model: that answers; loaded here if it is a name.
        method: ILP from near the paper's layer on if None.
        budget: visual tokens that each image keeps exactly, or its share; None keeps what its region covers. A mean
            over a set cannot be met in a stream.
        factor: what regions are scaled by instead, such as `Budgeted.factor` of another set.
        batch_size: questions of a batch, in both stages.
        window: batches that are sorted together by kept tokens, so that a batch has less padding; their answers come
            together.
        ahead: windows that may be localized ahead of the one that is answered.
        max_new_tokens: of an answer.
        device, localizer_device, dtype: of models that are loaded; the localizer's device is the model's if None.
        threads: of torch in the localizer's process; None is half of this one's.
        timeout: seconds to wait for the regions of one batch, once the localizer is loaded; None waits for ever.
        must_localize: raise where the localizer ended or fell silent, instead of keeping every token.

    Raises:
        ValueError: the model cannot be pruned like this; or a number is below 1.
        RunError: from the iterator: the localizer cannot be loaded, or (with `must_localize`) is lost.
    """
    for name, number in (("batch_size", batch_size), ("window", window), ("ahead", ahead)):
        if number < 1:
            raise ValueError(f"{name} must be at least 1, got {number}")
    if isinstance(localizer, str):
        localizer = Load(localizer, localizer_device or device, dtype)
    stage: Stage
    if hasattr(localizer, "locate"):
        _check_apart(localizer, model)
        stage = ThreadStage(localizer, timeout, must_localize)
    else:
        threads = max(1, torch.get_num_threads() // 2) if threads is None else threads
        stage = ProcessStage(localizer, threads, timeout, must_localize)
    try:
        vlm = model if isinstance(model, VLM) else load_vlm(model, dtype, device)
        answerer = AnswerStage(vlm, method, budget, factor, batch_size, max_new_tokens)
        return Pipeline(pairs, stage, answerer, batch_size, window, ahead)
    except BaseException:
        stage.close()
        raise


def _check_apart(localizer: Any, model: str | VLM) -> None:
    theirs = getattr(getattr(localizer, "vlm", None), "model", None)
    if isinstance(model, VLM) and theirs is model.model:
        raise ValueError("localizer and model are one model, which cannot compute in two threads: load it twice")


def _result(pair: Any, where: Located, answer: Any) -> Result:
    if isinstance(answer, Failed):
        return Result(pair, None, where.region, error=answer.reason, localize_seconds=where.seconds)
    return Result(
        pair, answer.text, where.region, answer.kept, answer.total, where.problem, None, where.seconds, answer.seconds
    )
