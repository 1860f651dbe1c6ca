"""What overlapping is worth: localizer and model each alone, both at once, and coupled as `cropl answer` couples them.

The localizer has a process of its own throughout. All phases take turns on the same questions, whose images are
encoded, so that both stages decode and prepare them. Loading counts nowhere, and neither does filling the pipeline: the
coupled phase is a stretch of an endless stream.
"""

from __future__ import annotations

import io
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from itertools import count, cycle, islice
from statistics import median
from typing import Any

import torch

from cropl.bench.pipeline_beside import Beside, check, sent
from cropl.errors import RunError, UsageError
from cropl.evaluation.pipeline import Pipeline
from cropl.evaluation.pipeline.answer import AnswerStage
from cropl.evaluation.pipeline.items import Asked, Failed, Located
from cropl.evaluation.pipeline.locate import Load
from cropl.evaluation.pipeline.process import ProcessStage
from cropl.evaluation.pipeline.stage import Stage
from cropl.models.vlm import VLM
from cropl.testbed.samples import samples

PHASES = ("localizer alone", "model alone", "both at once, uncoupled", "pipeline")


def questions(number: int) -> list[Asked]:
    """Questions of the testbed, their images as JPEG."""
    made = []
    for sample in samples("test", number):
        encoded = io.BytesIO()
        sample.picture().save(encoded, "JPEG", quality=90)
        made.append(Asked(encoded.getvalue(), sample.question))
    return made


def measure(
    vlm: VLM,
    load: Load,
    batch: int,
    batches: int,
    rounds: int,
    ahead: int = 2,
    budget: int | float | None = None,
    max_new_tokens: int = 8,
    threads: int = 1,
    advance: Callable[[str], None] = lambda what: None,
) -> dict[str, Any]:
    """Questions a second of every phase, and what overlapping reaches of the slower stage's own speed.

    Args:
        vlm: the model that answers, in this process.
        load: the localizer, for the other.
        batch: questions of a batch.
        batches: that are timed of each phase in a round, at least 2.
        rounds: how often all phases are measured, taking turns.
        ahead: see `pipeline`.
        budget: tokens that each image keeps, see `pipeline`.
        max_new_tokens: of an answer.
        threads: of torch, in each process.
        advance: called with the phase after each.

    Returns:
        All rates (`questions_per_s`), the CPU time that this process takes for a question (`model_cpu_seconds`), the
        share of the pipeline's time in which the model waited for the localizer (`waiting`), and `ratios`.

    Raises:
        RunError: a question was not located or not answered.
        UsageError: fewer batches than a rate can be measured of.
    """
    check_batches(batches)
    asked = questions(batch * batches)
    dealt = [asked[start : start + batch] for start in range(0, len(asked), batch)]
    answerer = AnswerStage(vlm, None, budget, None, batch, max_new_tokens)
    rates: dict[str, list[float]] = {phase: [] for phase in PHASES}
    machine: list[float] = []
    load_average: list[float] = []
    waiting: list[float] = []
    cpu: dict[str, list[float]] = {PHASES[1]: [], PHASES[3]: []}
    with ExitStack() as closing:
        closing.callback(torch.set_num_threads, torch.get_num_threads())
        torch.set_num_threads(threads)
        alone, coupling = (_started(load, threads, closing) for _ in range(2))
        coupled = Pipeline(_endless(asked), coupling, answerer, batch, 1, ahead)
        closing.callback(coupled.close)
        numbers = count()
        located = [alone.take(number, batch) for number in sent(alone, dealt, numbers)]
        check(located)
        _answered(answerer, dealt[:2], located)
        for _ in range(rounds):
            load_average.append(os.getloadavg()[0])
            rates[PHASES[0]].append(batch / _localized(alone, dealt, numbers))
            advance(PHASES[0])
            used = time.process_time()
            rates[PHASES[1]].append(batch / _answered(answerer, dealt, located))
            cpu[PHASES[1]].append((time.process_time() - used) / len(asked))
            advance(PHASES[1])
            beside = Beside(alone, dealt, numbers)
            seconds = _answered(answerer, dealt, located)
            per_batch = beside.stop()
            rates[PHASES[2]].append(batch / max(seconds, per_batch))
            model_is_slower = rates[PHASES[1]][-1] < rates[PHASES[0]][-1]
            machine.append(batch / (seconds if model_is_slower else per_batch))
            advance(PHASES[2])
            seconds, cpu_seconds, waited = _streamed(coupled, batch, batches, ahead)
            rates[PHASES[3]].append(batch / seconds)
            cpu[PHASES[3]].append(cpu_seconds / batch)
            waiting.append(waited / seconds)
            time.sleep(3 * (ahead + 2) * batch / rates[PHASES[0]][-1])  # its localizer works on until it may not
            advance(PHASES[3])
    return {
        "batch": batch,
        "batches": batches,
        "rounds": rounds,
        "ahead": ahead,
        "budget": budget,
        "max_new_tokens": max_new_tokens,
        "threads": threads,
        "load_average": load_average,
        "questions_per_s": rates,
        "model_cpu_seconds": cpu,
        "waiting": waiting,
        **ratios(rates, machine),
        "of_slower_by_cpu": _by_cpu(rates, cpu, waiting),
    }


def _started(load: Load, threads: int, closing: ExitStack) -> Stage:
    """A localizer that ends with what follows, however that ends."""
    stage = ProcessStage(load, threads)
    closing.callback(stage.close)
    return stage


def check_batches(batches: int) -> None:
    """Raise `UsageError` unless a rate can be measured of so many batches."""
    if batches < 2:
        raise UsageError(f"bench pipeline: batches={batches}: give at least 2, a rate is from one batch to another")


def ratios(rates: dict[str, list[float]], machine: Sequence[float]) -> dict[str, Any]:
    """What follows from the rounds: medians of ratios that were each measured side by side.

    `of_slower` is the pipeline's share of the slower stage's own speed; `machine` that of the slower stage beside the
    other one when nothing couples them, which is what the machine allows; `of_serial` the gain over one after another.
    """
    first, second, _, both = (rates[phase] for phase in PHASES)
    serial = [1 / (1 / one + 1 / two) for one, two in zip(first, second)]
    slower = [min(one, two) for one, two in zip(first, second)]

    return {
        "slower_stage": "localizer" if median(first) < median(second) else "model",
        "of_slower": _spread(both, slower),
        "machine": _spread(machine, slower),
        "of_machine": _spread(both, machine),
        "of_serial": _spread(both, serial),
    }


def _by_cpu(
    rates: dict[str, list[float]], cpu: dict[str, list[float]], waiting: Sequence[float]
) -> dict[str, Any] | None:
    """What the pipeline costs the model where that is the slower stage: its CPU time alone by that in the pipeline,
    and the time in which it need not wait. None where the localizer is slower."""
    if median(rates[PHASES[0]]) < median(rates[PHASES[1]]):
        return None
    busy = [alone * (1 - waits) for alone, waits in zip(cpu[PHASES[1]], waiting)]
    return _spread(busy, cpu[PHASES[3]])


def _spread(of: Sequence[float], by: Sequence[float]) -> dict[str, Any]:
    each = [one / other for one, other in zip(of, by)]
    return {"median": median(each), "spread": [min(each), max(each)]}


def _endless(asked: Sequence[Asked]) -> Iterator[tuple[Any, str]]:
    return ((one.image, one.question) for one in cycle(asked))


def _localized(stage: Stage, dealt: Sequence[list[Asked]], numbers: Iterator[int]) -> float:
    """Seconds of a batch, from the first one's regions to the last one's."""
    began = 0.0
    for number in sent(stage, dealt, numbers):
        check([stage.take(number, len(dealt[0]))])
        began = began or time.perf_counter()
    return (time.perf_counter() - began) / (len(dealt) - 1)


def _answered(answerer: AnswerStage, dealt: Sequence[list[Asked]], located: Sequence[list[Located]]) -> float:
    """Seconds of a batch whose regions are known."""
    began = time.perf_counter()
    for batch, regions in zip(dealt, located):
        for one in answerer(batch, regions):
            if isinstance(one, Failed):
                raise RunError(f"bench pipeline: a question was not answered: {one.reason}")
    return (time.perf_counter() - began) / min(len(dealt), len(located))


def _streamed(coupled: Pipeline, batch: int, batches: int, ahead: int) -> tuple[float, float, float]:
    """Of a batch of the endless stream, once what was localized while others were measured is used up: seconds, this
    process's CPU time, and the time in which the model waited for the localizer."""
    began = used = waited = 0.0
    for number, result in enumerate(islice(coupled, (ahead + 2 + batches) * batch), start=1):
        if result.error is not None or result.fallback is not None:
            raise RunError(f"bench pipeline: {result.error or result.fallback}")
        if number == (ahead + 2) * batch:
            began, used, waited = time.perf_counter(), time.process_time(), coupled.waited
    ends = time.perf_counter() - began, time.process_time() - used, coupled.waited - waited
    return ends[0] / batches, ends[1] / batches, ends[2] / batches
