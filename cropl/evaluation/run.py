"""Runs a study: localize, plan, answer, count, score. No Lightning, and nothing global.

Each step is a function over plain data, so that one day N processes can answer question i mod N each and merge by key.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from cropl.errors import UsageError
from cropl.evaluation import gallery, report, rows
from cropl.evaluation.answer import Answers, answer_all
from cropl.evaluation.arm_run import Run
from cropl.evaluation.costs import Costs, fixed_costs, measure_costs
from cropl.evaluation.facts import circumstances, peak_memory
from cropl.evaluation.files import write_json, write_jsonl
from cropl.evaluation.localize import Localized, localize, needs_boxes
from cropl.evaluation.pictures import by_image, displayed
from cropl.evaluation.plan import check_arms, make_plan
from cropl.evaluation.progress import Stages
from cropl.evaluation.study import Study
from cropl.metrics.answer import exact_match
from cropl.models.vlm import VLM
from cropl.tiling import Tokens, as_record

if TYPE_CHECKING:
    from cropl.data.sample import Sample
    from cropl.models.localizer import Localizer


@dataclass
class Outcome:
    """`results` is what `results.json` holds; `predictions` the lines of `predictions.jsonl`."""

    results: dict[str, Any]
    predictions: list[dict[str, Any]]


def run_study(
    study: Study,
    samples: Sequence[Sample],
    vlm: VLM,
    localizer: Localizer | None = None,
    grounding: VLM | None = None,
    recipe: str | None = None,
    stages: Stages | None = None,
    models: Mapping[str, VLM] | None = None,
) -> Outcome:
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

    Raises:
        UsageError: no samples, or keys that repeat; a source without what it needs, as true regions without any
            boxes; a knob that the model cannot have.
    """
    samples = list(samples)[: study.limit]
    if not samples:
        raise UsageError("the data holds no samples: check the split, the count and the limit")
    if len({sample.key for sample in samples}) < len(samples):
        seen: set[str] = set()
        twice = next(s.key for s in samples if s.key in seen or seen.add(s.key))  # type: ignore[func-returns-value]
        raise UsageError(f"sample key {twice!r} occurs twice: answers are merged by key, so keys must be unique")
    stages = stages or Stages()
    with torch.inference_mode():
        grids = _grids(vlm, samples)
        answering: dict[str | None, VLM] = {None: vlm}
        answering.update(models or {})
        check_arms(study.arms, answering, grids)
        for name, one in answering.items():
            if _grids(one, samples) != grids:
                raise UsageError(
                    f"study: model {name} has other visual tokens than the study's model: compare them apart"
                )
        fixed = fixed_costs(answering, samples, grids, localizer)
        found = localize(study, samples, localizer, grounding, stages)
        layers = {name: one.num_layers for name, one in answering.items()}
        runs = make_plan(study.arms, layers, [sample.key for sample in samples], grids, found.regions)
        feasible = [run for run in runs if run.infeasible is None]
        stages.stage("answering", len(samples) * len(feasible))
        answers = Answers()
        costs: dict[str, Costs] = {}
        for name, one in answering.items():
            mine = [run for run in feasible if run.arm.model == name]
            part = answer_all(
                one, samples, mine, study.batch_size, study.max_new_tokens, study.chunk_images, stages.advance
            )
            costs |= measure_costs(one, mine, part, fixed, grids)
            answers.add(part)
    shared = {
        "recipe": recipe,
        "batch_size": study.batch_size,
        "max_new_tokens": study.max_new_tokens,
        "images": answers.images,
        "encode_seconds": answers.encode_seconds,
        "localizer": study.localizer,
        "localizer_readout": str(localizer.readout) if localizer is not None else None,
        "localizer_seconds": found.seconds,
        "localizer_resolution": fixed.localizer_resolution,
        "peak_memory_bytes": peak_memory(vlm.device),
    }
    scores = rows.score_arms(samples, runs, answers)
    table = rows.build_rows(study, samples, runs, answers, scores, costs, shared)
    told = {name: circumstances(one) for name, one in answering.items()}
    for arm, row in zip(study.arms, table, strict=True):
        row |= {**told[arm.model], "without_boxes": found.without_boxes if needs_boxes(arm) else None}
    results = {
        "localizer": found.recall,
        "localizer_details": found.details,
        "rows": table,
        "comparisons": rows.compare(study, table, scores),
    }
    return Outcome(results, _predictions(samples, feasible, answers.texts, answers.visual, found, grids))


def _grids(vlm: VLM, samples: Sequence[Sample]) -> list[Tokens]:
    """Where each question's visual tokens lie: only the image's size counts."""
    sizes = [(sample.width, sample.height) for sample in samples]
    distinct = sorted(set(sizes))
    known = dict(zip(distinct, vlm.token_maps(distinct), strict=True))
    return [known[size] for size in sizes]


def _predictions(
    samples: Sequence[Sample],
    runs: Sequence[Run],
    texts: Mapping[str, Sequence[str]],
    visual: Mapping[str, Sequence[tuple[int, ...]]],
    found: Localized,
    grids: Sequence[Tokens],
) -> list[dict[str, Any]]:
    first_of = {index: samples[group[0]].key for group in by_image(samples) for index in group}
    lines = []
    for i, sample in enumerate(samples):
        arms = {}
        for run in runs:
            text, layers = texts[run.key][i], visual[run.key][i]
            # At K = L the mask is never applied: it would contradict the tokens that stayed.
            applied = run.kept[i] == layers[-1] and not run.meets_budget
            arms[run.key] = {
                "prediction": text,
                "correct": bool(exact_match(text, sample.answers)),
                "region": list(run.regions[i].as_tuple()) if run.regions else None,
                "tokens_kept": layers[-1],
                "layer_average_tokens": sum(layers) / len(layers),
                "kept": gallery.pack(run.keep[i].tolist()) if run.keep is not None and applied else None,
            }
        predicted = found.predicted[i] if found.predicted else None
        lines.append({
            "key": sample.key,
            "image_key": first_of[i],
            "kind": sample.kind,
            "question": sample.question,
            "answers": list(sample.answers),
            "region": list(sample.region.as_tuple()) if sample.boxes else None,
            "predicted_region": list(predicted.as_tuple()) if predicted else None,
            "grid": as_record(grids[i]),
            "arms": arms,
        })  # fmt: skip
    return lines


def save(outcome: Outcome, samples: Sequence[Sample], out: str | Path, gallery_size: int = 6) -> Path:
    """Write `predictions.jsonl`, `results.json` and `report.html` into `out`, each atomically; the report's path."""
    out = Path(out)
    by_key = {sample.key: sample for sample in samples}
    load: Callable[[Any], Any] | None = (lambda p: displayed(by_key[p["key"]])) if gallery_size else None
    write_jsonl(out / "predictions.jsonl", outcome.predictions)
    write_json(out / "results.json", outcome.results)
    return report.write(outcome.results, outcome.predictions, load, out / "report.html", gallery_size)
