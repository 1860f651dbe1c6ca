"""One line per question for `predictions.jsonl`: what was asked, and what every run made of it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cropl.evaluation import gallery
from cropl.evaluation.answers import Answers
from cropl.evaluation.arm_run import Run
from cropl.evaluation.localize import Regions
from cropl.evaluation.official import Official
from cropl.evaluation.pictures import by_image
from cropl.tiling import Tokens, as_record

if TYPE_CHECKING:
    import numpy as np

    from cropl.data.sample import Sample

RIGHT = 0.5
"""The credit from which on an answer counts as correct, where a benchmark knows more than right and wrong."""


def lines(
    samples: Sequence[Sample],
    runs: Sequence[Run],
    texts: Mapping[str, Sequence[str]],
    credits: Mapping[str, np.ndarray],
    answers: Answers,
    found: Regions,
    grids: Sequence[Tokens],
    official: Official | None,
) -> list[dict[str, Any]]:
    """The lines, in the order of the samples.

    Args:
        samples: all questions.
        runs: that were run.
        texts: every run's answers to all questions.
        credits: how right they are, 0..1; empty where nobody here knows.
        answers, found, grids: of the questions that have an image, in their order.
        official: the benchmark's rules; it knows the right answers where the samples do not.
    """
    first_of = {index: samples[group[0]].key for group in by_image(samples) for index in group}
    seen = {index: place for place, index in enumerate(i for i, s in enumerate(samples) if s.image is not None)}
    truths = {} if official is None else {truth.id: truth.answers for truth in official.truths}
    known = [()] * len(samples) if official is None else [truths[id] for id in official.ids]
    made = []
    for i, sample in enumerate(samples):
        place = seen.get(i)
        arms = {}
        for run in runs:
            credit = float(credits[run.key][i]) if run.key in credits else None
            arms[run.key] = {
                "prediction": texts[run.key][i],
                "correct": None if credit is None else credit >= RIGHT,
                "credit": credit,
                **({} if place is None else _kept(run, place, answers)),
            }
        predicted = found.predicted[place] if found.predicted and place is not None else None
        made.append({
            "key": sample.key,
            "id": sample.id,
            "image": str(Path(sample.image).resolve()) if isinstance(sample.image, (str, Path)) else None,
            "image_key": first_of[i],
            "kind": sample.kind,
            "question": sample.question,
            "answers": list(sample.answers or dict.fromkeys(known[i])),
            "region": list(sample.region.as_tuple()) if sample.boxes else None,
            "predicted_region": list(predicted.as_tuple()) if predicted else None,
            "grid": None if place is None else as_record(grids[place]),
            "arms": arms,
        })  # fmt: skip
    return made


def _kept(run: Run, place: int, answers: Answers) -> dict[str, Any]:
    layers = answers.visual[run.key][place]
    # At K = L the mask is never applied: it would contradict the tokens that stayed.
    applied = run.kept[place] == layers[-1] and not run.meets_budget
    return {
        "region": list(run.regions[place].as_tuple()) if run.regions else None,
        "tokens_kept": layers[-1],
        "layer_average_tokens": sum(layers) / len(layers),
        "kept": gallery.pack(run.keep[place].tolist()) if run.keep is not None and applied else None,
    }
