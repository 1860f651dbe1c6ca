"""LLaVA's question files: what its evaluation asks of each benchmark, word for word, without the answers.

One JSON object per line with `question_id`, `image`, `text` and `category`; `text` is the whole prompt. The files
are in LLaVA's `eval.zip`: GQA, VQAv2, TextVQA (with OCR reference tokens), POPE, MME. The answers lie in each
benchmark's own files, which the other readers read.
"""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cropl.data.readers.base import Annotation, BadRow, Reader, Rejected, split_of, text, unique_ids
from cropl.data.sample import Sample

SHORT_ANSWER = "\nAnswer the question using a single word or phrase."
"""What LLaVA appends to the questions of every benchmark with short answers."""

_AFTER_THE_QUESTION = re.compile(r"\n(?:Reference OCR token:|Answer the question using)")


class LlavaQuestions(Reader):
    """One question file.

    Some files repeat an id: TextVQA's is the image's, MME asks two questions under one (see `unique_ids`). A category
    that the id does not start with goes into the source: POPE's become `pope-adversarial`, `pope-popular` and
    `pope-random`; MME's task is in its ids, and "default" says nothing.

    Args:
        file: the questions.
        source: the data set.
        images: folder that the rows' image paths start from; None where no images are at hand.
        split: which one the questions are from; by default val where the file's name has the word, else test.
        kind: the kind of all the questions, see `metrics.answer.QUESTION_KINDS`; "" if they differ.

    Raises:
        ValueError: the split is unknown.
    """

    def __init__(
        self,
        file: str | Path,
        source: str,
        images: str | Path | None = None,
        split: str | None = None,
        kind: str = "",
    ) -> None:
        super().__init__(file, images)
        self.source, self.kind = source, kind
        self.split = split_of(split or ("val" if "val" in self.file.stem.split("_") else "test"))

    def __iter__(self) -> Iterator[Annotation | Rejected]:
        return unique_ids(super().__iter__())

    def parse(self, row: Any, number: int) -> Iterator[Annotation]:
        """One question; its id is not yet told apart from repeated ones."""
        prompt = row["text"]
        question = text(_AFTER_THE_QUESTION.split(prompt)[0] if isinstance(prompt, str) else prompt, "question")
        id = published_id(row)
        category = row.get("category", "default")
        told = category == "default" or id.startswith(f"{category}/")
        yield Annotation(
            id=id,
            question=question,
            prompt="" if prompt.strip() == question else prompt,
            answers=(),
            source=self.source if told else f"{self.source}-{text(category, 'category')}",
            split=self.split,
            image=text(row["image"], "image"),
            kind=self.kind,
        )


def short_answer(sample: Sample) -> str:
    """A question with the request for a short answer, for data that comes without LLaVA's prompt."""
    return sample.question + SHORT_ANSWER


def published_id(row: Mapping[str, Any]) -> str:
    """The `question_id`, a number in some files and text in others; BadRow if it is neither."""
    value = row["question_id"]
    if type(value) not in (int, str) or value == "":
        raise BadRow("no question id", repr(value)[:80])
    return str(value)
