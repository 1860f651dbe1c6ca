"""VQAv2: what its server is handed in, and on val the official rule; test-dev's answers are not published."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cropl.benchmarks.base import Benchmark, Totals, Truth
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

    def truths(self, *files: Path) -> Iterator[Truth]:
        """The questions of `v2_mscoco_val2014_annotations.json`, by the kind of answer (yes/no, number, other)."""
        (annotations,) = files
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

    def scores(self, totals: Totals) -> dict[str, npt.NDArray[np.float64]]:
        made = {"accuracy": soft(totals)}
        return made | {group: soft({group: total}) for group, total in totals.items() if group}
