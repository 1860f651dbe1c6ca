"""Runs a study: localize, plan, answer, count, score. No Lightning, and nothing global.

Each step is a function over plain data. What was localized and answered is written down at once, by any number of
processes that share the questions; whoever finds all of it there makes the rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from cropl.errors import UsageError
from cropl.evaluation import fingerprint
from cropl.evaluation.collect import check_text_only, collect
from cropl.evaluation.costs import Costs, fixed_costs, measure_costs
from cropl.evaluation.facts import circumstances, peak_memory
from cropl.evaluation.journal import opened
from cropl.evaluation.localize import check_sources, localize
from cropl.evaluation.official import Official
from cropl.evaluation.outcome import Outcome, outcome
from cropl.evaluation.outcome import save as save
from cropl.evaluation.part import Part
from cropl.evaluation.plan import check_arms, make_plan
from cropl.evaluation.progress import Stages
from cropl.evaluation.study import Study
from cropl.models.vlm import VLM
from cropl.tiling import Tokens

if TYPE_CHECKING:
    from cropl.data.sample import Sample
    from cropl.models.localizer import Localizer


def run_study(
    study: Study,
    samples: Sequence[Sample],
    vlm: VLM,
    localizer: Localizer | None = None,
    grounding: VLM | None = None,
    recipe: str | None = None,
    stages: Stages | None = None,
    models: Mapping[str, VLM] | None = None,
    official: Official | None = None,
    folder: Path | None = None,
    part: Part = Part(),  # noqa: B008
) -> Outcome | None:
    """Answer all questions under all arms.

    Args:
        study: checked configuration.
        samples: the questions; their keys are unique.
        vlm: the model that answers.
        localizer: for the region source `predicted` (and for the size of `center` and `random`).
        grounding: for the source `zero_shot`.
        recipe: its name, for the rows.
        stages: where progress goes.
        models: the models of arms that name one of their own, by this name.
        official: the benchmark's own scores; without, exact match, or none at all where the study names a scorer.
        folder: where finds are written, and read again after an interruption; None keeps them in memory.
        part: which share of the questions to answer. Needs a folder, the same for all parts.

    Returns:
        The outcome; None for a part, once its share is answered.

    Raises:
        UsageError: no samples, or keys that repeat; a source without what it needs, as true regions without any
            boxes; a knob that the model cannot have; finds in the folder that are another study's.
    """
    samples = list(samples)[: study.limit]
    answering: dict[str | None, VLM] = {None: vlm}
    answering.update(models or {})
    stages = stages or Stages()
    if vlm.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(vlm.device)
    with torch.inference_mode():
        seen, text, grids = check_run(study, samples, answering)
        fixed = fixed_costs(answering, seen, grids, localizer)
        told = fingerprint.of_regions(study, seen, localizer, grounding)
        cache = None if study.cache is None else Path(study.cache, study.benchmark)
        with opened(folder, "regions", told, part, cache) as finds:
            found = localize(study, seen, localizer, grounding, stages, finds, part)
        layers = {name: one.num_layers for name, one in answering.items()}
        runs = make_plan(study.arms, layers, [sample.key for sample in seen], grids, found.regions)
        feasible = [run for run in runs if run.infeasible is None]
        with opened(folder, "answers", fingerprint.of_answers(study, samples, answering), part) as finds:
            answers, blind = collect(study, seen, text, answering, feasible, finds, part, stages)
            alone = not answers.restored
        if not part.whole:
            return None
        costs: dict[str, Costs] = {}
        for name, one in answering.items():
            costs |= measure_costs(one, [run for run in feasible if run.arm.model == name], answers, fixed, grids)
    around = {name: circumstances(one) | ({} if alone else {"threads": None}) for name, one in answering.items()}
    shared = {
        "recipe": recipe,
        "localizer_readout": str(localizer.readout) if localizer is not None else None,
        "localizer_resolution": fixed.localizer_resolution,
        "peak_memory_bytes": peak_memory(vlm.device) if alone else None,  # of this process, which answered all or not
    }
    return outcome(study, samples, runs, answers, blind, found, grids, costs, official, shared, around)


def check_run(
    study: Study, samples: Sequence[Sample], answering: Mapping[str | None, VLM]
) -> tuple[list[Sample], list[Sample], list[Tokens]]:
    """Everything that can be known before any question is answered.

    Returns:
        The questions with an image, those without, and the token grids of the former.

    Raises:
        UsageError: as for `run_study`.
    """
    samples = samples[: study.limit]
    _check_keys(samples)
    seen = [sample for sample in samples if sample.image is not None]
    text = [sample for sample in samples if sample.image is None]
    if not seen:
        raise UsageError(f"{study.benchmark}: no question of the data has an image: there is nothing to prune")
    grids = _grids(answering[None], seen)
    check_arms(study.arms, answering, grids)
    for name, one in answering.items():
        if _grids(one, seen) != grids:
            raise UsageError(f"study: model {name} has other visual tokens than the study's model: compare them apart")
    check_text_only(answering, text)
    check_sources(study, seen)
    return seen, text, grids


def _check_keys(samples: Sequence[Sample]) -> None:
    if not samples:
        raise UsageError("the data holds no samples: check the split, the count and the limit")
    seen: set[str] = set()
    for sample in samples:
        if sample.key in seen:
            raise UsageError(
                f"sample key {sample.key!r} occurs twice: answers are merged by key, so keys must be unique"
            )
        seen.add(sample.key)


def _grids(vlm: VLM, samples: Sequence[Sample]) -> list[Tokens]:
    """Where each question's visual tokens lie: only the image's size counts."""
    sizes = [(sample.width, sample.height) for sample in samples]
    distinct = sorted(set(sizes))
    known = dict(zip(distinct, vlm.token_maps(distinct), strict=True))
    return [known[size] for size in sizes]
