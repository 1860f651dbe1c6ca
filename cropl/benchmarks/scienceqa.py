"""ScienceQA as LLaVA's `eval_science_qa.py` scores it: the letter of the right choice, with and without image."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from string import ascii_uppercase

import numpy as np
import numpy.typing as npt

from cropl.benchmarks.base import Benchmark, Totals, Truth
from cropl.benchmarks.gqa import share
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

    def truths(self, *files: Path) -> Iterator[Truth]:
        """The test split of `problems.json` and `pid_splits.json`."""
        problems, splits = files
        by_id = json_object(problems, NOTHING)
        for id in map(str, json_object(splits, NOTHING)["test"]):
            problem = by_id[id]
            group = "text" if problem["image"] is None else "image"
            yield Truth(id, (ascii_uppercase[problem["answer"]],), group, choices=len(problem["choices"]))

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

    def scores(self, totals: Totals) -> dict[str, npt.NDArray[np.float64]]:
        made = {"accuracy": share(*totals.values())}
        return made | {f"{group}_accuracy": share(total) for group, total in totals.items()}
