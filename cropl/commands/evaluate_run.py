"""Loads what `cropl evaluate` needs, questions before models, so that bad data is told before anything is answered."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from cropl import recipe
from cropl.benchmarks.base import read_truths
from cropl.benchmarks.join import join
from cropl.benchmarks.names import benchmark, check_files
from cropl.commands.models import open_localizer, open_vlm, own_family
from cropl.data.sample import Sample
from cropl.errors import UsageError
from cropl.evaluation.official import Official
from cropl.evaluation.outcome import Outcome, save
from cropl.evaluation.part import Part
from cropl.evaluation.progress import Stages
from cropl.evaluation.run import check_run, run_study
from cropl.evaluation.study import Study
from cropl.evaluation.submissions import write_submissions
from cropl.evaluation.suite import Suite
from cropl.models.vlm import VLM


@dataclass(frozen=True)
class Task:
    """One benchmark of a suite, or the only one of a study: its questions, how they are scored, where results go."""

    study: Study
    samples: Sequence[Sample]
    official: Official | None
    out: Path


def load_tasks(suite: Suite, out: Path, apart: bool) -> list[Task]:
    """The questions of every benchmark, joined with its annotations.

    Args:
        suite: what is asked for.
        out: where results go.
        apart: whether each benchmark has a folder of its own there.

    Raises:
        UsageError, ValueError: a class that does not exist, files that are missing or do not fit together.
    """
    for arm in (arm for study in suite.studies for arm in study.arms):
        recipe.load_object(arm.class_path)
    if family := suite.studies[0].family:
        own_family(family)
    tasks = []
    for study, prepare in zip(suite.studies, suite.prepare, strict=True):
        if prepare is not None:
            recipe.instantiate(prepare, f"{study.benchmark}: prepare")
        samples = load_samples(study)
        official = _official(study, samples)
        samples = [_prompted(sample, study.prompt) for sample in samples[: study.limit]]
        tasks.append(Task(study, samples, official, out / study.benchmark if apart else out))
    return tasks


def run_tasks(tasks: Sequence[Task], label: str, part: Part) -> dict[str, Outcome]:
    """Answer, score and save each benchmark; of a part, only answer. Models are loaded once.

    Args:
        tasks: the benchmarks, of one model and one list of arms.
        label: what rows call the recipe.
        part: which share of the questions.
    """
    study = tasks[0].study

    def answering(name: str) -> VLM:
        options = (study.device, study.dtype, study.attention, study.protocol, study.system, study.family)
        return open_vlm(name, *options)

    vlm = answering(study.model)
    arms = [arm for task in tasks for arm in task.study.arms]
    models = {name: answering(name) for name in dict.fromkeys(arm.model for arm in arms if arm.model)}
    localizer = open_localizer(study.localizer, study.device, study.dtype) if study.localizer else None
    grounding = open_vlm(study.grounding, study.device, study.dtype) if study.grounding else None
    for task in tasks:  # of the last one before the first is answered
        answering_it: dict[str | None, VLM] = {None: vlm}
        answering_it.update(_of(models, task.study))
        check_run(task.study, task.samples, answering_it)
    outcomes = {}
    with Stages(quiet=part.index > 0) as stages:  # of several parts the first one tells
        for task in tasks:
            stages.heading(task.study.benchmark if len(tasks) > 1 else "")
            outcome = run_study(
                task.study, task.samples, vlm, localizer, grounding, label, stages, _of(models, task.study),
                task.official, task.out, part,
            )  # fmt: skip
            if outcome is not None:
                save(outcome, task.samples, task.out, task.study.gallery)
                write_submissions(outcome, task.official, task.out / "submissions")
                outcomes[task.study.benchmark] = outcome
    return outcomes


def _of(models: Mapping[str, VLM], study: Study) -> dict[str, VLM]:
    """Those that a study's arms name."""
    return {arm.model: models[arm.model] for arm in study.arms if arm.model}


def load_samples(study: Study) -> list[Sample]:
    """The questions, from the recipe's `data`: a class or function that gives `Sample`s, a sequence or an iterable.

    A scorer takes all of them, since it has to know that none is missing; without one, `limit` is enough.
    """
    samples = recipe.instantiate(study.data, "data")
    limit = study.limit if study.scorer is None else None
    if hasattr(samples, "__len__") and hasattr(samples, "__getitem__"):
        return [samples[index] for index in range(min(len(samples), limit or len(samples)))]
    return list(islice(samples, limit))


def _official(study: Study, samples: Sequence[Sample]) -> Official | None:
    """How the benchmark itself scores; None without a scorer, or without annotations."""
    if study.scorer is None:
        return None
    scorer = benchmark(study.scorer)
    if not study.annotations:
        return None
    check_files(study.scorer, study.annotations, f"{study.benchmark}: annotations")
    truths = read_truths(scorer, [Path(file) for file in study.annotations])
    # A file of questions alone counts none of them, and covers more than one split asks.
    ids = join(scorer, truths, samples)
    return Official.joined(scorer, truths, ids, study.limit)


def _prompted(sample: Sample, prompt: str | None) -> Sample:
    if prompt is None:
        return sample
    asked = recipe.load_object(prompt)(sample)
    if not isinstance(asked, str) or not asked.strip():
        raise UsageError(f"prompt {prompt}: gives {asked!r} for the question {sample.key!r}, not text")
    return replace(sample, prompt=asked)
