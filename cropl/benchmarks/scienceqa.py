"""ScienceQA as LLaVA's `eval_science_qa.py` scores it: the letter of the right choice, with and without image."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import ascii_uppercase
from typing import Any

import numpy as np
import numpy.typing as npt

from cropl.benchmarks.base import Benchmark, Totals, Truth, check_answers
from cropl.benchmarks.gqa import share
from cropl.benchmarks.submission import write_json
from cropl.data.readers.rows import json_object
from cropl.data.readers.scienceqa import NOTHING

LETTERS = "ABCDE"
_SENTENCE = re.compile(r"The answer is ([A-Z]).")  # any character may stand where the full stop is


class ScienceQA(Benchmark):
    """Accuracy over all questions, and over those with an image; the paper's table seems to hold the first.

    An answer is a letter from A to E; a letter, a full stop and a space; or holds "The answer is X." once. Everything
    else is wrong, and so is a letter beyond the choices.
    """

    name = "scienceqa"
    primary = "accuracy"
    submission = "scienceqa_result.json"

    def truths(self, *files: Path) -> Iterator[Truth]:
        """The test split of `problems.json` and `pid_splits.json`."""
        problems, splits = files
        by_id = json_object(problems, NOTHING)
        for id in map(str, json_object(splits, NOTHING)["test"]):
            problem = by_id[id]
            group = "text" if problem["image"] is None else "image"
            letter, asked = ascii_uppercase[problem["answer"]], str(problem.get("question", ""))
            yield Truth(id, (letter,), group, choices=len(problem["choices"]), question=asked)

    def letter(self, answer: str) -> str | None:
        """What the official script takes an answer for."""
        if answer in tuple(LETTERS):
            return answer
        if answer[:1] in tuple(LETTERS) and answer[1:3] == ". ":
            return answer[0]
        found = _SENTENCE.findall(answer)
        return found[0] if len(found) == 1 else None

    def judge(self, truth: Truth, answer: str) -> tuple[int, ...]:
        letter = self.letter(answer)
        offered = LETTERS[: truth.choices]
        return int(letter is not None and letter in offered and letter == truth.answers[0]), 1

    def write_submission(self, path: Path, truths: Sequence[Truth], answers: Mapping[str, str]) -> None:
        """What `eval_science_qa.py` leaves behind (`--output-result`): the index of each choice, -1 for none."""
        check_answers(truths, list(answers))
        right = sum(self.judge(truth, answers[truth.id])[0] for truth in truths)
        result = {
            "acc": 100 * right / len(truths),
            "correct": right,
            "count": len(truths),
            "results": {
                truth.id: LETTERS[: truth.choices].find(self.letter(answers[truth.id]) or "-") for truth in truths
            },
            "outputs": {truth.id: answers[truth.id] for truth in truths},
        }
        write_json(path, result)

    def submitted_rows(self, path: Path, truths: Sequence[Truth]) -> Iterator[Any] | None:
        """The outputs of a result."""
        if path.suffix == ".jsonl" or not path.read_bytes()[:64].lstrip().startswith(b"{"):
            return None
        outputs = json_object(path, "no result").get("outputs")
        if not isinstance(outputs, dict):
            raise ValueError(f"{path}: no `outputs`; a result of LLaVA's script has them")
        return ({"question_id": id, "answer": text} for id, text in outputs.items())

    def scores(self, totals: Totals) -> dict[str, npt.NDArray[np.float64]]:
        made = {"accuracy": share(*totals.values())}
        return made | {f"{group}_accuracy": share(total) for group, total in totals.items()}


class SmallLetters(ScienceQA):
    """For models that know no capitals, as the testbed's: their letters are handed in as capitals, the rules stay."""

    def submitted(self, answer: str) -> str:
        return answer.upper()
