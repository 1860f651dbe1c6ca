"""TextVQA as LLaVA scores it (`m4c_evaluator.py`): ten annotators, both sides normalised as the server does."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cropl.benchmarks.base import Benchmark, Totals, Truth, check_answers
from cropl.benchmarks.submission import number, write_json
from cropl.benchmarks.vqa_text import challenge, check_ten, tenths
from cropl.data.readers.rows import json_rows

OCR = "Reference OCR token:"
"""What stands in front of an image's text in a prompt, before or behind the question."""

_LEGACY = re.compile(r"OCR tokens: .*?Question: (.*?)(?: Short answer:|$)", re.DOTALL)
"""A prompt of LLaVA's first version."""


class TextVqa(Benchmark):
    """Soft accuracy: full marks from four annotators on, see `vqa_text.tenths`."""

    name = "textvqa"
    primary = "accuracy"
    columns = ("tenths", "questions")
    submission = "textvqa_answers.json"

    def truths(self, *files: Path) -> Iterator[Truth]:
        """The questions of `TextVQA_0.5.1_val.json`."""
        (file,) = files
        for row in json_rows(file, "data.item"):
            yield Truth(
                f"{row['image_id']}/{row['question'].lower()}",
                tuple(row["answers"]),
                unit=str(row["image_id"]),
                question=row["question"],
                aliases=(str(row["question_id"]),) if "question_id" in row else (),
            )

    def known_as(self, id: str, prompt: str, source: str = "") -> str:
        """From the image's id and the question, without regard to case: LLaVA's ids are those of images."""
        lines, legacy = prompt.split("\n"), _LEGACY.match(prompt)
        question = lines[1] if lines[0].startswith(OCR) and len(lines) > 1 else lines[0]
        question = legacy[1] if legacy else question
        return f"{id}/{question.lower()}" if question else id

    def write_submission(self, path: Path, truths: Sequence[Truth], answers: Mapping[str, str]) -> None:
        """What the server reads, which normalises by itself."""
        check_answers(truths, list(answers))
        ids = {truth.id: number(next(iter(truth.aliases), truth.id), self.name) for truth in truths}
        write_json(path, [{"question_id": ids[id], "answer": answer} for id, answer in answers.items()])

    def judge(self, truth: Truth, answer: str) -> tuple[int, ...]:
        check_ten(truth.answers, truth.id)
        given = Counter(challenge(one) for one in truth.answers)
        return tenths(given[challenge(answer)]), 1

    def credit(self, counts: Sequence[int]) -> float:
        return counts[0] / 10

    def scores(self, totals: Totals) -> dict[str, npt.NDArray[np.float64]]:
        return {"accuracy": soft(totals)}


def soft(totals: Totals) -> npt.NDArray[np.float64]:
    """Percent of tenths."""
    summed = np.sum(list(totals.values()), axis=0)
    found: npt.NDArray[np.float64] = 10 * summed[..., 0] / summed[..., 1]
    return found
