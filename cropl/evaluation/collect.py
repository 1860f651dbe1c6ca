"""Gathers all answers of a study: those that were found before, and those that this process finds now."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cropl.errors import UsageError
from cropl.evaluation import fingerprint
from cropl.evaluation.answer import answer_all, answer_text_only
from cropl.evaluation.answers import Answered, Answers, Encoded
from cropl.evaluation.arm_run import Run
from cropl.evaluation.journal import Finds
from cropl.evaluation.outcome import TextOnly
from cropl.evaluation.part import Part
from cropl.evaluation.pictures import by_image
from cropl.evaluation.progress import Stages
from cropl.evaluation.study import Study
from cropl.models.text_only import text_inputs
from cropl.models.vlm import VLM

if TYPE_CHECKING:
    from cropl.data.sample import Sample

Models = Mapping[str | None, VLM]


def check_text_only(models: Models, samples: Sequence[Sample]) -> None:
    """UsageError where there are questions without an image and a model's family cannot be asked any."""
    for name, vlm in models.items():
        try:
            if samples:
                text_inputs(vlm, [samples[0].asked])
        except NotImplementedError as error:
            who = "the study's model" if name is None else name
            raise UsageError(
                f"{len(samples)} questions have no image, such as {samples[0].key!r}, and {who} takes none of them: "
                f"{error}"
            ) from None


def collect(
    study: Study,
    seen: Sequence[Sample],
    text: Sequence[Sample],
    models: Models,
    runs: Sequence[Run],
    finds: Finds,
    part: Part,
    stages: Stages,
) -> tuple[Answers, TextOnly]:
    """The answers of the feasible `runs`; of a part, those to its share and whatever else is there already.

    Args:
        study: how it is run.
        seen: the questions with an image.
        text: those without.
        models: that answer.
        runs: planned on `seen`.
        finds: answers that are there, and where new ones go.
        part: which share this process answers.
        stages: where progress goes.
    """
    answers, blind = Answers.of(runs, len(seen)), Answers()
    text_runs = {_text_only(name): name for name in models} if text else {}
    for key in text_runs:
        blind.expect(key, len(text))
    marks = {run.key: fingerprint.of_run(run) for run in runs} | dict.fromkeys(text_runs, "")
    _restore(finds, marks, answers, seen, blind, text)

    groups = part.share(by_image(seen))
    mine, mine_text = {index for group in groups for index in group}, set(range(len(text))[part.index :: part.of])
    missing = {run.key: answers.missing(run.key) & mine for run in runs}
    missing |= {key: blind.missing(key) & mine_text for key in text_runs}
    total = len(mine) * len(runs) + len(mine_text) * len(text_runs)
    stages.stage("answering", total)
    if before := total - sum(map(len, missing.values())):
        stages.advance("found before", before)
    size, longest = study.batch_size, study.max_new_tokens
    for name, vlm in models.items():
        of_model = [run for run in runs if run.arm.model == name]
        for batch in answer_all(vlm, seen, of_model, groups, missing, size, longest, study.chunk_images):
            new = [one for one in batch if name is None or isinstance(one, Answered)]  # encoding is told of one model
            answers.take(new)
            _note(finds, new, marks, seen)
            stages.advance(next((one.run for one in batch if isinstance(one, Answered)), ""), _count(batch))
        for key in (key for key, of in text_runs.items() if of == name):
            for batch in answer_text_only(vlm, text, key, missing[key], size, longest):
                blind.take(batch)
                _note(finds, batch, marks, text)
                stages.advance(key, len(batch))
    texts = {name: [said or "" for said in blind.texts[key]] for key, name in text_runs.items()}
    return answers, TextOnly(texts, {name: blind.seconds[key] for key, name in text_runs.items()})


def _text_only(model: str | None) -> str:
    """The key under which a model's answers to questions without an image go; no arm has it."""
    return "text only" if model is None else f"text only, {model}"


def _count(batch: Sequence[Answered | Encoded]) -> int:
    return sum(isinstance(one, Answered) for one in batch)


def _note(
    finds: Finds, batch: Sequence[Answered | Encoded], marks: Mapping[str, str], samples: Sequence[Sample]
) -> None:
    finds.append(
        [
            {"encoded": one.images, "seconds": one.seconds}
            if isinstance(one, Encoded)
            else {**one.record(samples[one.index].key), "mark": marks[one.run]}
            for one in batch
        ]
    )


def _restore(
    finds: Finds,
    marks: Mapping[str, str],
    answers: Answers,
    seen: Sequence[Sample],
    blind: Answers,
    text: Sequence[Sample],
) -> None:
    """Enter what was found before, under the same marks."""
    places = {sample.key: (answers, index) for index, sample in enumerate(seen)}
    places |= {sample.key: (blind, index) for index, sample in enumerate(text)}
    for record in finds.read():
        if "encoded" in record:
            answers.take([Encoded(record["encoded"], record["seconds"])])
        elif marks.get(record["run"]) == record["mark"]:
            of, index = places[record["key"]]
            given = {name: value for name, value in record.items() if name != "mark"}
            of.take([Answered.from_record(given, index)])
            answers.restored = True
