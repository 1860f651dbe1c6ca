"""GQA's questions as Stanford publishes them: one JSON object, from question id to record.

`{"201307251": {"question": ..., "imageId": "n161313", "answer": ..., "isBalanced": true, "types": {"structural",
"semantic", "detailed"}, ...}}`. GQA scores balanced questions only.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import ijson

from cropl.data.readers.base import Annotation, BadRow, Reader, split_of_file, text
from cropl.data.readers.llava_questions import SHORT_ANSWER
from cropl.data.readers.rows import streamed

KINDS = {"attr": "attribute", "rel": "relation", "obj": "existence"}
"""GQA's semantic types by our kinds; its `cat` (which sort of thing) and `global` (the whole scene) have none."""


class Gqa(Reader):
    """A `*_balanced_questions.json`: testdev has 12,578 questions about 398 images.

    Args:
        file: the questions.
        images: folder of the images, `n161313.jpg`.
        split: by default the one that the file is named for; testdev counts as test.

    Raises:
        ValueError: the split is unknown, or the file's name tells none.
    """

    def __init__(self, file: str | Path, images: str | Path | None = None, split: str | None = None) -> None:
        super().__init__(file, images)
        self.split = split_of_file(Path(self.file.stem.replace("testdev", "test")), split)

    def rows(self) -> Iterator[tuple[str, Any]]:
        """Id and record of each question, streamed: the training file has 943,000."""
        nothing = "no questions by id; is this GQA's own question file?"
        return streamed(self.file, lambda file: ijson.kvitems(file, "", use_float=True), nothing)

    def parse(self, row: Any, number: int) -> Iterator[Annotation]:
        """One question."""
        id, record = row
        question = text(record["question"], "question")
        if record.get("isBalanced") is False:
            raise BadRow("not a balanced question", id)
        types = record.get("types") or {}
        yield Annotation(
            id=id,
            question=question,
            prompt=question + SHORT_ANSWER,
            answers=(text(record["answer"], "answer"),),
            source="gqa",
            split=self.split,
            image=f"{text(record['imageId'], 'image')}.jpg",
            kind=KINDS.get(str(types.get("semantic")), ""),
        )
