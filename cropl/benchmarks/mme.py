"""MME as its `calculation.py` scores it: two questions about an image, a point more where both are right."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from cropl.benchmarks.base import Benchmark, Counts, Totals, Truth, check_answers, plain
from cropl.benchmarks.submission import one_line, write_text
from cropl.data.readers.base import Annotation
from cropl.data.readers.llava_questions import SHORT_ANSWER
from cropl.data.readers.mme import COGNITION, ENDINGS, INSTRUCTION, PERCEPTION
from cropl.data.readers.mme import Mme as Reader
from cropl.data.readers.rows import BadRow


class _Questions(Reader):
    """The questions alone, as they are written: scores need no image."""

    def parse(self, row: Path, number: int) -> Iterator[Annotation]:
        for one, (asked, _) in zip(super().parse(row, number), self.pair(row), strict=True):
            yield replace(one, prompt=asked)

    def _image(self, task: str, stem: str) -> str:
        return f"{task}/{stem}"


class Mme(Benchmark):
    """Points: of a task, 100 times the share of right answers and 100 times that of images with both right.

    Perception has 2,000 points, cognition 800; tables hold their sum. An answer is yes or no by its first four
    characters in lower case, "yes" before "no"; anything else is neither, and wrong.
    """

    name = "mme"
    primary = "total"
    columns = ("right", "questions", "both", "images")
    submission = "mme_results"

    def truths(self, *files: Path) -> Iterator[Truth]:
        """Both questions of every image in MME's folder; their ids end in their texts, as LLaVA's are the image's."""
        (folder,) = files
        for row in _Questions(folder):
            if not isinstance(row, Annotation):
                raise ValueError(f"{row.where}: {row.reason} {row.detail}")
            image = str(row.image)
            answer, task = row.answers[0].lower(), image.partition("/")[0]
            yield Truth(f"{image}/{row.question}", (answer,), task, image, question=row.prompt)

    def known_as(self, id: str, prompt: str, source: str = "") -> str:
        """From `celebrity/images/x.jpg` and the prompt."""
        path, question = PurePosixPath(id), INSTRUCTION.sub("", prompt.split(SHORT_ANSWER)[0].strip()).strip()
        image = path.stem if path.suffix in (*ENDINGS, ".txt") else path.name
        return id if "/" not in id or not question else f"{path.parts[0]}/{image}/{question}"

    def asks(self, truth: Truth, prompt: str) -> bool:
        """LLaVA's prompts leave the request for a yes or no out."""
        return plain(INSTRUCTION.sub("", truth.question.strip())) in plain(prompt)

    def write_submission(self, path: Path, truths: Sequence[Truth], answers: Mapping[str, str]) -> None:
        """What `calculation.py` reads: a file for each task, whose lines belong together by twos."""
        check_answers(truths, list(answers))
        for task in dict.fromkeys(truth.group for truth in truths):
            pairs: dict[str, list[str]] = {}
            for truth in truths:
                if truth.group == task:
                    name, label = truth.unit.partition("/")[2], truth.answers[0].title()
                    told = (f"{name}.txt", truth.question, label, one_line(answers[truth.id]))
                    pairs.setdefault(truth.unit, []).append("\t".join(told) + "\n")
            write_text(path / f"{task}.txt", "".join(line for pair in pairs.values() for line in pair))

    def submitted_rows(self, path: Path, truths: Sequence[Truth]) -> Iterator[Any] | None:
        """The lines of all tasks' files."""
        files = [path / f"{task}.txt" for task in (*PERCEPTION, *COGNITION)]
        if not path.is_dir():
            return None
        if missing := [file.name for file in files if not file.is_file()]:
            raise ValueError(f"{path}: no {', '.join(missing)}; MME's results are a file for each of its 14 tasks")
        return (row for file in files for row in _lines(file))

    def says(self, answer: str) -> str:
        """yes, no, or other."""
        start = answer.lower()[:4]
        return "yes" if "yes" in start else "no" if "no" in start else "other"

    def judge(self, truth: Truth, answer: str) -> tuple[int, ...]:
        return int(self.says(answer) == truth.answers[0]), 1, 0, 0

    def unite(self, counts_QC: Counts) -> Counts:
        """Of an image: both of its questions, or the image would not count as one.

        Raises:
            ValueError: it has not two.
        """
        if len(counts_QC) != 2:
            raise ValueError(f"mme: an image with {len(counts_QC)} questions; the score is of pairs")
        summed: Counts = counts_QC.sum(0)
        summed[2:] = int(summed[0] == 2), 1
        return summed

    def scores(self, totals: Totals) -> dict[str, npt.NDArray[np.float64]]:
        points = {
            task: 100 * total[..., 0] / total[..., 1] + 100 * total[..., 2] / total[..., 3]
            for task, total in totals.items()
        }
        zero = np.zeros_like(next(iter(points.values())))
        perception = sum((points[task] for task in PERCEPTION if task in points), zero)
        cognition = sum((points[task] for task in COGNITION if task in points), zero)
        return {"total": perception + cognition, "perception": perception, "cognition": cognition, **points}


def _lines(file: Path) -> Iterator[Any]:
    with open(file, encoding="utf-8") as lines:  # splits at fewer marks than `splitlines`
        for line in lines:
            parts = line.rstrip("\n").split("\t")
            if len(parts) == 4:
                yield {"question_id": f"{file.stem}/{parts[0]}", "prompt": parts[1], "answer": parts[3]}
            else:
                yield BadRow(f"{file.name}: not an image, a question, its label and an answer between tabs", line[:80])
