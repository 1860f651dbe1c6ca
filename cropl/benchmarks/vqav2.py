"""VQAv2: what its server is handed in, and on val the official rule; test-dev's answers are not published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import ijson
import numpy as np
import numpy.typing as npt

from cropl.benchmarks.base import Benchmark, Totals, Truth, check_answers
from cropl.benchmarks.submission import number, write_json
from cropl.benchmarks.textvqa import soft
from cropl.benchmarks.vqa_text import challenge, check_ten, official, tenths
from cropl.data.readers.rows import json_rows


class VqaV2(Benchmark):
    """Soft accuracy of what LLaVA hands in, as VQA's evaluation code computes it.

    Where all ten annotators agree nothing is normalised any further, on either side.
    """

    name = "vqav2"
    primary = "accuracy"
    columns = ("tenths", "questions")
    submission = "vqav2_answers.json"

    def truths(self, *files: Path) -> Iterator[Truth]:
        """The questions of `v2_mscoco_val2014_annotations.json`, by the kind of answer (yes/no, number, other).

        Those of a file of questions, such as test2015's, count in no score: a submission has to cover them.
        """
        (annotations,) = files
        if _asks(annotations):
            for row in json_rows(annotations, "questions.item"):
                yield Truth(str(row["question_id"]), (), unit=str(row.get("image_id", "")), counted=False)
            return
        for row in json_rows(annotations, "annotations.item"):
            answers = tuple(answer["answer"] for answer in row["answers"])
            yield Truth(str(row["question_id"]), answers, str(row.get("answer_type", "")), str(row.get("image_id", "")))

    def submitted(self, answer: str) -> str:
        return challenge(answer)

    def judge(self, truth: Truth, answer: str) -> tuple[int, ...]:
        check_ten(truth.answers, truth.id)
        said = answer.replace("\n", " ").replace("\t", " ").strip()
        given = [answer.replace("\n", " ").replace("\t", " ").strip() for answer in truth.answers]
        if len(set(given)) > 1:
            said, given = official(said), [official(answer) for answer in given]
        return tenths(Counter(given)[said]), 1

    def credit(self, counts: Sequence[int]) -> float:
        return counts[0] / 10

    def write_submission(self, path: Path, truths: Sequence[Truth], answers: Mapping[str, str]) -> None:
        """What the server reads: every question of the file, with "" for those that were not asked."""
        check_answers(truths, list(answers))
        asked = [(number(truth.id, self.name), answers.get(truth.id, "")) for truth in truths]
        write_json(path, [{"question_id": id, "answer": answer} for id, answer in asked])

    def scores(self, totals: Totals) -> dict[str, npt.NDArray[np.float64]]:
        made = {"accuracy": soft(totals)}
        return made | {group: soft({group: total}) for group, total in totals.items() if group}


def _asks(file: Path) -> bool:
    """Whether a file has questions, and no annotations: what stands before either is short."""
    try:
        with open(file, "rb") as opened:
            keys = (value for at, event, value in ijson.parse(opened) if event == "map_key" and not at)
            return next((key for key in keys if key in ("questions", "annotations")), "") == "questions"
    except (OSError, ijson.JSONError, UnicodeDecodeError):
        return False  # whoever reads it says what is wrong
