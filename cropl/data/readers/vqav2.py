"""VQAv2's own files: questions, and for train and val the annotations that hold ten answers to each.

`v2_OpenEnded_mscoco_val2014_questions.json` is `{"questions": [{"question_id": 262148000, "image_id": 262148,
"question": ...}], ...}`, `v2_mscoco_val2014_annotations.json` is `{"annotations": [{"question_id",
"multiple_choice_answer", "answers": [{"answer": ...}, ten of them]}], ...}`.
"""

from collections.abc import Iterator
from pathlib import Path
from sys import intern
from typing import Any, ClassVar

from cropl.data.readers.base import Annotation, BadRow, Reader, split_of_file, text
from cropl.data.readers.llava_questions import SHORT_ANSWER, published_id
from cropl.data.readers.rows import json_rows


class VqaV2(Reader):
    """The questions of one split: val has 214,354, test-dev 107,394.

    Args:
        questions: the questions.
        annotations: their answers; None where they are not published.
        images: COCO's folder of the split, `COCO_val2014_000000262148.jpg`.
        prefix: start of the image names, `COCO_test2015_` for both test splits.
        split: by default the one that `prefix` names; test-dev counts as test.

    Raises:
        ValueError: the split is unknown, or the prefix names none.
    """

    streams: ClassVar[bool] = False

    def __init__(
        self,
        questions: str | Path,
        annotations: str | Path | None = None,
        images: str | Path | None = None,
        prefix: str = "COCO_val2014_",
        split: str | None = None,
    ) -> None:
        super().__init__(questions, images)
        self.annotations = None if annotations is None else Path(annotations)
        self.prefix, self.split = prefix, split_of_file(Path(prefix), split)

    @property
    def files(self) -> list[Path]:
        """The questions, and the annotations if there are any."""
        return [self.file] if self.annotations is None else [self.file, self.annotations]

    def rows(self) -> Iterator[tuple[Any, dict[str, tuple[str, ...]] | None]]:
        """Each question, with the answers to all of them."""
        answers = None if self.annotations is None else _answers(self.annotations)
        for row in json_rows(self.file, "questions.item"):
            yield row, answers

    def parse(self, row: Any, number: int) -> Iterator[Annotation]:
        """One question."""
        record, answers = row
        question, id, image = text(record["question"], "question"), published_id(record), record["image_id"]
        if type(image) is not int:
            raise BadRow("no image", repr(image)[:80])
        if answers is not None and id not in answers:
            raise BadRow("no annotation for the question", id)
        yield Annotation(
            id=id,
            question=question,
            prompt=question + SHORT_ANSWER,
            answers=() if answers is None else answers[id],
            source="vqav2",
            split=self.split,
            image=f"{self.prefix}{image:012d}.jpg",
        )


def _answers(annotations: Path) -> dict[str, tuple[str, ...]]:
    """Answers by question id, repeated ones too because a score counts them, the agreed one first.

    Only these are kept: all of an annotation, two hundred thousand times, would take gigabytes.
    """
    found = {}
    for row in json_rows(annotations, "annotations.item"):
        try:
            agreed, answers = row["multiple_choice_answer"], [intern(answer["answer"]) for answer in row["answers"]]
            if not answers:
                raise BadRow("no answers")
            found[published_id(row)] = tuple(sorted(answers, key=lambda answer: answer != agreed))
        except (KeyError, TypeError, BadRow):
            raise ValueError(f"{annotations}: an annotation is malformed: {str(row)[:120]}") from None
    return found
