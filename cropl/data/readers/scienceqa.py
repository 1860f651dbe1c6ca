"""ScienceQA's own files: all problems by id, and the ids of each split. Half of the problems have no image.

`problems.json` is `{"5": {"question", "choices": [...], "answer": 1, "hint", "image": "image.png" or null, "split",
...}}`, `pid_splits.json` is `{"test": ["5", ...], ...}`. The prompt is LLaVA's (`llava_test_CQM-A.json`): the hint as
context where there is one, the question, the choices with their letters, and the request for a letter.
"""

from collections.abc import Iterator
from pathlib import Path
from string import ascii_uppercase
from typing import Any

from cropl.data.readers.base import Annotation, BadRow, Reader, split_of, text
from cropl.data.readers.rows import json_object

OPTION_LETTER = "Answer with the option's letter from the given choices directly."
"""What LLaVA appends to questions with choices."""

NOTHING = "not a JSON object with ids or splits as its keys; is this the right file?"


class ScienceQA(Reader):
    """The problems of one split, with and without image: test has 4,241, of which 2,017 have one.

    Args:
        problems: `problems.json`.
        splits: `pid_splits.json`.
        images: folder with a folder for each of train, val and test, `test/5/image.png`.
        split: a key of `splits`: train, val, test, or a part such as minitest.
    """

    def __init__(
        self, problems: str | Path, splits: str | Path, images: str | Path | None = None, split: str = "test"
    ) -> None:
        super().__init__(problems, images)
        self.splits, self.split = Path(splits), split

    @property
    def files(self) -> list[Path]:
        """The problems and the splits."""
        return [self.file, self.splits]

    def rows(self) -> Iterator[tuple[str, Any] | BadRow]:
        """Id and record of each problem of the split, in its order.

        Raises:
            ValueError: a file is missing or not a JSON object, or there is no such split.
        """
        problems, splits = json_object(self.file, NOTHING), json_object(self.splits, NOTHING)
        if not isinstance(splits.get(self.split), list):
            raise ValueError(f"{self.splits}: no split {self.split!r}; it has {sorted(splits)}")
        for id in map(str, splits[self.split]):
            yield (id, problems[id]) if id in problems else BadRow("not among the problems", id)

    def parse(self, row: Any, number: int) -> Iterator[Annotation]:
        """One problem."""
        id, problem = row
        question, choices, answer = text(problem["question"], "question"), problem["choices"], problem["answer"]
        some = isinstance(choices, list) and 1 < len(choices) <= len(ascii_uppercase)
        if not some or not all(isinstance(choice, str) for choice in choices):
            raise BadRow("no choices", repr(choices)[:80])
        if type(answer) is not int or not 0 <= answer < len(choices):
            raise BadRow("the answer is none of the choices", f"{answer!r} of {len(choices)}")
        hint, split = (problem["hint"] or "").strip(), problem["split"]
        options = [f"{letter}. {choice}" for letter, choice in zip(ascii_uppercase, choices, strict=False)]
        context = [f"Context: {hint}"] if hint else []
        image = problem["image"]
        yield Annotation(
            id=id,
            question=question,
            prompt="\n".join([*context, question, *options, OPTION_LETTER]),
            answers=(ascii_uppercase[answer],),
            source="scienceqa",
            split=split_of(split),
            image=None if image is None else f"{split}/{id}/{text(image, 'image')}",
            kind="choice",
        )
