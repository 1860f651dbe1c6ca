"""POPE as its `evaluate.py` scores it: is this object in the image? Each way of choosing absent objects by itself."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cropl.benchmarks.base import Benchmark, Totals, Truth
from cropl.data.readers.base import Annotation
from cropl.data.readers.pope import Pope as Reader

CATEGORIES = ("adversarial", "popular", "random")


class Pope(Benchmark):
    """The mean over the categories of each score; the paper's table holds F1, which it calls accuracy.

    An answer is no where its first sentence, without commas, has the word "No", "no" or "not"; everything else is yes,
    also an empty answer, and "NO".
    """

    name = "pope"
    primary = "f1"
    columns = ("true_yes", "false_yes", "true_no", "false_no")

    def truths(self, *files: Path) -> Iterator[Truth]:
        """The questions of files named for their categories; the random one may have 2,910 or 3,000."""
        for file in files:
            reader = Reader(file)
            category = reader.source.rpartition("-")[2]
            for row in reader:
                if not isinstance(row, Annotation):
                    raise ValueError(f"{row.where}: {row.reason} {row.detail}")
                yield Truth(f"{category}/{row.id}", row.answers, category, row.image or "")

    def known_as(self, id: str, prompt: str) -> str:
        """LLaVA numbers all three files in one: random ones from 10,000,001, popular ones from 20,000,001."""
        if not id.isdecimal():
            return id
        file, number = divmod(int(id), 10_000_000)
        return f"{('adversarial', 'random', 'popular')[file]}/{number}" if file < 3 else id

    def says_yes(self, answer: str) -> bool:
        """How the official script reads an answer."""
        words = answer.split(".")[0].replace(",", "").split(" ")
        return not {"No", "no", "not"} & set(words)

    def judge(self, truth: Truth, answer: str) -> tuple[int, ...]:
        yes, right = self.says_yes(answer), truth.answers[0] == "yes"
        return int(yes and right), int(yes and not right), int(not yes and not right), int(not yes and right)

    def scores(self, totals: Totals) -> dict[str, npt.NDArray[np.float64]]:
        by_group = {group: _rates(total) for group, total in totals.items()}
        made = {name: np.mean([rates[name] for rates in by_group.values()], axis=0) for name in RATES}
        return made | {f"{group}_{name}": value for group, rates in by_group.items() for name, value in rates.items()}


RATES = ("accuracy", "precision", "recall", "f1", "yes")


def _rates(total: npt.NDArray[np.float64]) -> dict[str, npt.NDArray[np.float64]]:
    """Percent. Where a model never says yes, precision and F1 are 0 (the script would divide by zero)."""
    true_yes, false_yes, true_no, false_no = np.moveaxis(total, -1, 0)
    every = true_yes + false_yes + true_no + false_no
    return {
        "accuracy": 100 * (true_yes + true_no) / every,
        "precision": 100 * true_yes / np.maximum(true_yes + false_yes, 1),
        "recall": 100 * true_yes / np.maximum(true_yes + false_no, 1),
        "f1": 200 * true_yes / np.maximum(2 * true_yes + false_yes + false_no, 1),
        "yes": 100 * (true_yes + false_yes) / every,
    }
