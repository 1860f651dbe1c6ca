"""A benchmark with its own rules: the share of an answer's words that are right, each in its place."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cropl.benchmarks.base import Benchmark, Totals, Truth, check_answers
from cropl.benchmarks.submission import write_json


class Receipts(Benchmark):
    """`words` counts all words alike, `answers` those that are right as a whole; both in percent."""

    name = "receipts"
    primary = "words"
    columns = ("words_right", "words", "right", "questions")
    submission = "receipts.json"

    def truths(self, *files: Path) -> Iterator[Truth]:
        for file in files:
            for line in file.read_text(encoding="utf-8").splitlines():
                row = json.loads(line)
                yield Truth(row["id"], (row["answer"],), unit=row["file"], question=row["question"])

    def submitted(self, answer: str) -> str:
        return answer.strip().lower()

    def judge(self, truth: Truth, answer: str) -> tuple[int, ...]:
        said, words = answer.split(), truth.answers[0].lower().split()
        right = sum(given == word for given, word in zip(said, words))
        return right, len(words), int(said == words), 1

    def credit(self, counts: Sequence[int]) -> float:
        return counts[0] / counts[1]

    def scores(self, totals: Totals) -> dict[str, npt.NDArray[np.float64]]:
        summed = np.sum(list(totals.values()), axis=0)
        return {
            "words": 100 * summed[..., 0] / summed[..., 1],
            "answers": 100 * summed[..., 2] / summed[..., 3],
        }

    def write_submission(self, path: Path, truths: Sequence[Truth], answers: Mapping[str, str]) -> None:
        check_answers(truths, list(answers))
        write_json(path, [{"question_id": id, "answer": answer} for id, answer in answers.items()])
