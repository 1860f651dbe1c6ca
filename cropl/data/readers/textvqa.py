"""TextVQA's own files (`TextVQA_0.5.1_val.json`): questions about text in images, ten answers each.

`{"data": [{"question_id": 34602, "question": ..., "image_id": "003a8ae2ef43b901", "image_width": 1024, "image_height":
664, "answers": [ten], "set_name": "val", ...}]}`.
"""

from collections import Counter
from collections.abc import Iterator
from typing import Any

from cropl.data.readers.base import Annotation, BadRow, Reader, image_size, split_of, text
from cropl.data.readers.llava_questions import SHORT_ANSWER, published_id
from cropl.data.readers.rows import json_rows


class TextVqa(Reader):
    """One file; val has 5,000 questions about 3,166 images.

    The prompt has no OCR tokens: LLaVA's scores need them, and they are in its question file (`LlavaQuestions`).

    Args:
        file: the questions; the test file has no answers.
        images: folder of the images, `003a8ae2ef43b901.jpg` (`train_images` for train and val).
    """

    def rows(self) -> Iterator[Any]:
        """The records under `data`."""
        return json_rows(self.file, "data.item")

    def parse(self, row: Any, number: int) -> Iterator[Annotation]:
        """One question."""
        question = text(row["question"], "question")
        split = split_of(row["set_name"])
        yield Annotation(
            id=published_id(row),
            question=question,
            prompt=question + SHORT_ANSWER,
            answers=() if split == "test" else ten_answers(row["answers"]),
            source="textvqa",
            split=split,
            image=f"{text(row['image_id'], 'image')}.jpg",
            size=image_size({"width": row["image_width"], "height": row["image_height"]}),
            kind="text",
        )


def ten_answers(answers: Any) -> tuple[str, ...]:
    """The annotators' ten answers, repeated ones too because a score counts them, the most frequent first.

    Raises:
        BadRow: they are not ten texts.
    """
    if not isinstance(answers, list) or len(answers) != 10 or not all(isinstance(answer, str) for answer in answers):
        raise BadRow("not ten answers", repr(answers)[:80])
    count = Counter(answers)
    return tuple(sorted(answers, key=lambda answer: -count[answer]))
