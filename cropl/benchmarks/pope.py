"""POPE as its `evaluate.py` scores it: is this object in the image? Each way of choosing absent objects by itself."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from cropl.benchmarks.base import Benchmark, Totals, Truth, check_answers
from cropl.benchmarks.submission import write_lines
from cropl.data.readers.base import Annotation
from cropl.data.readers.pope import Pope as Reader
from cropl.data.readers.rows import BadRow, json_lines

CATEGORIES = ("adversarial", "popular", "random")


class Pope(Benchmark):
    """The mean over the categories of each score; the paper's table holds F1, which it calls accuracy.

    An answer is no where its first sentence, without commas, has the word "No", "no" or "not"; everything else is yes,
    also an empty answer, and "NO".
    """

    name = "pope"
    primary = "f1"
    columns = ("true_yes", "false_yes", "true_no", "false_no")
    submission = "pope_answers"

    def truths(self, *files: Path) -> Iterator[Truth]:
        """The questions of files named for their categories; the random one may have 2,910 or 3,000."""
        for file in files:
            reader = Reader(file)
            category = reader.source.rpartition("-")[2]
            for row in reader:
                if not isinstance(row, Annotation):
                    raise ValueError(f"{row.where}: {row.reason} {row.detail}")
                alone = (row.id,) if len(files) == 1 else ()  # else LLaVA's numbers say of which file they are
                name, image = f"{category}/{row.id}", row.image or ""
                yield Truth(name, row.answers, category, image, question=row.question, aliases=alone)

    def known_as(self, id: str, prompt: str, source: str = "") -> str:
        """LLaVA numbers all three files in one: random ones from 10,000,001, popular ones from 20,000,001.

        Their own files number each from 1; a sample's source ends in the category.
        """
        if not id.isdecimal():
            return id
        file, number = divmod(int(id), 10_000_000)
        told = source.rpartition("-")[2]
        if file == 0 and told in CATEGORIES:
            return f"{told}/{number}"
        return f"{('adversarial', 'random', 'popular')[file]}/{number}" if file < 3 else id

    def write_submission(self, path: Path, truths: Sequence[Truth], answers: Mapping[str, str]) -> None:
        """A file for each category, in the order of its labels: `evaluate.py` knows answers by their lines."""
        check_answers(truths, list(answers))
        for category in dict.fromkeys(truth.group for truth in truths):
            mine = [truth for truth in truths if truth.group == category]
            rows = [{"question": truth.question, "answer": answers[truth.id]} for truth in mine]
            write_lines(path / f"coco_pope_{category}.jsonl", rows)

    def submitted_rows(self, path: Path, truths: Sequence[Truth]) -> Iterator[Any] | None:
        """Lines without ids, in the order of the labels; the file's name has its category, or there is only one.

        POPE's own answers are lines in a `.json`.
        """
        if path.is_dir():
            files = sorted(path.glob("*.json*"))
        else:
            first = next(json_lines(path), None)
            files = [path] if isinstance(first, dict) and set(first) == {"question", "answer"} else []
        groups = list(dict.fromkeys(truth.group for truth in truths))
        return (row for file in files for row in _lines(file, groups, truths)) if files else None

    def says_yes(self, answer: str) -> bool:
        """How the official script reads an answer."""
        words = answer.split(".")[0].replace(",", "").split(" ")
        return not {"No", "no", "not"} & set(words)

    def judge(self, truth: Truth, answer: str) -> tuple[int, ...]:
        yes, right = self.says_yes(answer), truth.answers[0] == "yes"
        return int(yes and right), int(yes and not right), int(not yes and not right), int(not yes and right)

    def credit(self, counts: Sequence[int]) -> float:
        true_yes, _, true_no, _ = counts
        return float(true_yes + true_no)

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


def _lines(file: Path, groups: Sequence[str], truths: Sequence[Truth]) -> Iterator[Any]:
    """The answers of a file, with the ids that their places give them."""
    named = [group for group in groups if group in file.stem] or groups
    if len(named) != 1:
        raise ValueError(f"{file}: answers without ids to which of {', '.join(groups)}? Put it into the file's name")
    mine = iter([truth for truth in truths if truth.group == named[0]])
    for row in json_lines(file):
        truth = next(mine, None)
        if truth is None:
            yield BadRow("more answers than there are questions", named[0])
        elif isinstance(row, dict) and truth.question.lower() not in str(row.get("question", truth.question)).lower():
            yield BadRow(
                "another question than the labels have in its place", f"{row['question']!r}, not {truth.question!r}"
            )
        else:
            yield {"question_id": truth.id, **row} if isinstance(row, dict) else row
