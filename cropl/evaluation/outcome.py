"""From answers to what is written: rows, comparisons, lines per question, and the report."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cropl.benchmarks.base import Counts
from cropl.evaluation import predictions, report, rows
from cropl.evaluation.answers import Answers
from cropl.evaluation.arm_run import Run
from cropl.evaluation.costs import Costs
from cropl.evaluation.files import write_json, write_jsonl
from cropl.evaluation.localize import Regions, needs_boxes
from cropl.evaluation.official import Official
from cropl.evaluation.pictures import by_image, displayed
from cropl.evaluation.study import Study
from cropl.tiling import Tokens

if TYPE_CHECKING:
    from cropl.data.sample import Sample


@dataclass
class Outcome:
    """`results` is what `results.json` holds; `predictions` the lines of `predictions.jsonl`."""

    results: dict[str, Any]
    predictions: list[dict[str, Any]]


@dataclass(frozen=True)
class TextOnly:
    """The answers to questions without an image, in their order: the same under all arms of a model.

    Attributes:
        texts: by the name that arms give the model; None is the study's.
        seconds: that they took, by the same name.
    """

    texts: Mapping[str | None, Sequence[str]]
    seconds: Mapping[str | None, float]


def outcome(
    study: Study,
    samples: Sequence[Sample],
    runs: Sequence[Run],
    answers: Answers,
    blind: TextOnly,
    found: Regions,
    grids: Sequence[Tokens],
    costs: Mapping[str, Costs],
    official: Official | None,
    shared: Mapping[str, Any],
    circumstances: Mapping[str | None, Mapping[str, Any]],
) -> Outcome:
    """The outcome of a study whose questions are all answered.

    Args:
        study: what was asked for.
        samples: all questions.
        runs: of all arms.
        answers, found, grids: of the questions with an image.
        blind: of those without.
        costs: by run key.
        official: the benchmark's own scores.
        shared: what all rows carry.
        circumstances: what the rows of one model carry, by its name.
    """
    feasible = [run for run in runs if run.infeasible is None]
    texts = {run.key: _merged(samples, answers.texts[run.key], blind.texts.get(run.arm.model, ())) for run in feasible}
    counts, credits = _scored(study, samples, texts, official)
    scores = rows.score_arms(runs, credits)
    images = len(by_image([sample for sample in samples if sample.image is not None]))
    table = rows.build_rows(study, samples, runs, answers, scores, official, counts, costs, {
        **shared,
        "batch_size": study.batch_size,
        "max_new_tokens": study.max_new_tokens,
        "text_only": len(samples) - len(grids),
        "images": images,
        "encode_seconds": answers.encode_seconds / max(answers.encoded, 1) * images,
        "localizer": study.localizer,
        "localizer_seconds": found.seconds,
    })  # fmt: skip
    for arm, row in zip(study.arms, table, strict=True):
        row |= circumstances[arm.model]
        row["without_boxes"] = found.without_boxes if needs_boxes(arm) else None
        row["text_only_seconds"] = blind.seconds.get(arm.model, 0.0)
    results = {
        "localizer": found.recall,
        "localizer_details": found.details,
        "rows": table,
        "comparisons": rows.compare(study, table, scores),
    }
    return Outcome(results, predictions.lines(samples, feasible, texts, credits, answers, found, grids, official))


def _scored(
    study: Study, samples: Sequence[Sample], texts: Mapping[str, Sequence[str]], official: Official | None
) -> tuple[dict[str, Counts], rows.Scores]:
    """What the answers of every run come to, and how right each is; nothing where a server alone knows that."""
    if official is None:
        return {}, {} if study.scorer else rows.score_exactly(samples, texts)
    if not official.scored:
        return {}, {}
    counts = {key: official.counts(said) for key, said in texts.items()}
    return counts, {key: official.credits(counts_QC) for key, counts_QC in counts.items()}


def _merged(samples: Sequence[Sample], seen: Sequence[str | None], blind: Sequence[str]) -> list[str]:
    """The answers in the order of the samples, of those to questions with and without an image."""
    with_image, without = iter(seen), iter(blind)
    made = [next(without if sample.image is None else with_image) for sample in samples]
    assert None not in made, "a question was not answered"
    return made  # type: ignore[return-value]


def save(outcome: Outcome, samples: Sequence[Sample], out: str | Path, gallery_size: int = 6) -> Path:
    """Write `predictions.jsonl`, `results.json` and `report.html` into `out`, each atomically; the report's path."""
    out = Path(out)
    by_key = {sample.key: sample for sample in samples}
    load: Callable[[Any], Any] | None = (lambda p: displayed(by_key[p["key"]])) if gallery_size else None
    write_jsonl(out / "predictions.jsonl", outcome.predictions)
    write_json(out / "results.json", outcome.results)
    shown = [line for line in outcome.predictions if line["grid"] is not None]
    return report.write(outcome.results, shown, load, out / "report.html", gallery_size)
