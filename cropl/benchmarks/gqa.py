"""GQA as Stanford's `eval.py` scores what LLaVA hands in: answers in lower case without a full stop behind them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import ijson
import numpy as np
import numpy.typing as npt

from cropl.benchmarks.base import Benchmark, Totals, Truth, check_answers
from cropl.benchmarks.submission import write_json
from cropl.data.readers.rows import streamed


class Gqa(Benchmark):
    """Exact equality: no spaces are stripped, no articles dropped. Balanced questions only."""

    name = "gqa"
    primary = "accuracy"
    submission = "testdev_balanced_predictions.json"

    def truths(self, *files: Path) -> Iterator[Truth]:
        """The questions of a `*_questions.json`: open ones are those of the structure "query", all others binary."""
        nothing = "no questions by id; is this GQA's own question file?"
        (questions,) = files
        for id, record in streamed(questions, lambda file: ijson.kvitems(file, "", use_float=True), nothing):
            counted = record.get("isBalanced") is not False
            group, image, asked = _structure(record), str(record.get("imageId", "")), str(record.get("question", ""))
            yield Truth(id, (record["answer"],), group, image, counted=counted, question=asked)

    def submitted(self, answer: str) -> str:
        return answer.rstrip(".").lower()

    def judge(self, truth: Truth, answer: str) -> tuple[int, ...]:
        return int(answer == truth.answers[0]), 1

    def write_submission(self, path: Path, truths: Sequence[Truth], answers: Mapping[str, str]) -> None:
        """What `eval.py --predictions` reads."""
        check_answers(truths, list(answers))
        write_json(path, [{"questionId": id, "prediction": answer} for id, answer in answers.items()])

    def scores(self, totals: Totals) -> dict[str, npt.NDArray[np.float64]]:
        made = {"accuracy": share(*totals.values())}
        return made | {group: share(total) for group, total in totals.items() if group}


def _structure(record: Any) -> str:
    structural = (record.get("types") or {}).get("structural")
    return "" if structural is None else "open" if structural == "query" else "binary"


def share(*totals: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Percent of the first column in the second, over all groups given."""
    summed = np.sum(totals, axis=0)
    found: npt.NDArray[np.float64] = 100 * summed[..., 0] / summed[..., 1]
    return found
