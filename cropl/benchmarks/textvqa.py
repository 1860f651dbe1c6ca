"""TextVQA as LLaVA scores it (`m4c_evaluator.py`): ten annotators, both sides normalised as the server does."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cropl.benchmarks.base import Benchmark, Totals, Truth
from cropl.benchmarks.vqa_text import challenge, check_ten, tenths
from cropl.data.readers.rows import json_rows

OCR = "Reference OCR token:"
"""What stands in front of an image's text in a prompt, before or behind the question."""


class TextVqa(Benchmark):
    """Soft accuracy: full marks from four annotators on, see `vqa_text.tenths`."""

    name = "textvqa"
    primary = "accuracy"
    columns = ("tenths", "questions")

    def truths(self, *files: Path) -> Iterator[Truth]:
        """The questions of `TextVQA_0.5.1_val.json`."""
        (file,) = files
        for row in json_rows(file, "data.item"):
            yield Truth(
                f"{row['image_id']}/{row['question'].lower()}", tuple(row["answers"]), unit=str(row["image_id"])
            )

    def known_as(self, id: str, prompt: str) -> str:
        """From the image's id and the question, without regard to case: LLaVA's ids are those of images."""
        lines = prompt.split("\n")
        question = lines[1] if lines[0].startswith(OCR) and len(lines) > 1 else lines[0]
        return f"{id}/{question.lower()}" if question else id

    def judge(self, truth: Truth, answer: str) -> tuple[int, ...]:
        check_ten(truth.answers, truth.id)
        given = Counter(challenge(one) for one in truth.answers)
        return tenths(given[challenge(answer)]), 1

    def scores(self, totals: Totals) -> dict[str, npt.NDArray[np.float64]]:
        return {"accuracy": soft(totals)}


def soft(totals: Totals) -> npt.NDArray[np.float64]:
    """Percent of tenths."""
    summed = np.sum(list(totals.values()), axis=0)
    found: npt.NDArray[np.float64] = 10 * summed[..., 0] / summed[..., 1]
    return found
