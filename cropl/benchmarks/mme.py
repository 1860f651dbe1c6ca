"""MME as its `calculation.py` scores it: two questions about an image, a point more where both are right."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import numpy as np
import numpy.typing as npt

from cropl.benchmarks.base import Benchmark, Counts, Totals, Truth
from cropl.data.readers.base import Annotation
from cropl.data.readers.llava_questions import SHORT_ANSWER
from cropl.data.readers.mme import COGNITION, INSTRUCTION, PERCEPTION
from cropl.data.readers.mme import Mme as Reader


class _Questions(Reader):
    """The questions alone: scores need no image."""

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

    def truths(self, *files: Path) -> Iterator[Truth]:
        """Both questions of every image in MME's folder; their ids end in their texts, as LLaVA's are the image's."""
        (folder,) = files
        for row in _Questions(folder):
            if not isinstance(row, Annotation):
                raise ValueError(f"{row.where}: {row.reason} {row.detail}")
            image = str(row.image)
            yield Truth(f"{image}/{row.question}", (row.answers[0].lower(),), image.partition("/")[0], image)

    def known_as(self, id: str, prompt: str) -> str:
        """From `celebrity/images/x.jpg` and the prompt."""
        path, question = PurePosixPath(id), INSTRUCTION.sub("", prompt.split(SHORT_ANSWER)[0].strip()).strip()
        return id if "/" not in id or not question else f"{path.parts[0]}/{path.stem}/{question}"

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
