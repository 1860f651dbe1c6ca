"""LLaVA's instruction data: `llava_v1_5_mix665k.json`, or the same rows as `.jsonl`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from cropl.data.readers.base import Annotation, BadRow, Reader, Rejected, text, unique_ids
from cropl.data.sample import Turn

MARKER = "<image>"


class LlavaInstruct(Reader):
    """Conversations about an image, or about none: a row without the key `image` is text alone.

    An answer before the first question is dropped, as LLaVA's trainer does, and so is a last question without an
    answer: there is nothing to train on. The image marker is taken out of the questions wherever it stands; a marker
    that would mean no image, in an answer or in text alone, makes a row unusable. Ids come again in the published file
    (see `unique_ids`).

    Args:
        file: the rows.
        images: the folder that holds `coco/`, `gqa/`, `ocr_vqa/`, `textvqa/` and `vg/`.
        source: what all rows count as; by default `llava-` and the first folder of the image (`llava-coco`), and
            `llava-text` for text alone, so that they are told from localization data of the same origin.
    """

    def __init__(self, file: str | Path, images: str | Path | None = None, source: str | None = None) -> None:
        super().__init__(file, images)
        self.source = source

    def __iter__(self) -> Iterator[Annotation | Rejected]:
        return unique_ids(super().__iter__())

    def parse(self, row: Any, number: int) -> Iterable[Annotation]:
        """One annotation: the first question with its answer, the others as followups."""
        image = text(row["image"], "image") if "image" in row else None
        (question, answer), *followups = _conversation(row["conversations"], image is not None)
        folders = ["text"] if image is None else [*PurePosixPath(image).parts[:-1], "images"]
        yield Annotation(
            id=str(row.get("id", number)),
            question=question,
            answers=(answer,),
            source=f"llava-{folders[0]}" if self.source is None else self.source,
            split="train",
            image=image,
            followups=tuple(followups),
        )


def _conversation(turns: list[dict[str, str]], has_image: bool) -> list[Turn]:
    if turns and turns[0]["from"] == "gpt":
        turns = turns[1:]
    if [turn["from"] for turn in turns] != ["human", "gpt"] * (len(turns) // 2) + ["human"] * (len(turns) % 2):
        raise BadRow("human and gpt do not take turns", [turn["from"] for turn in turns][:8])
    if len(turns) < 2:
        raise BadRow("no answer")
    pairs = [(asked["value"], answered["value"]) for asked, answered in zip(turns[::2], turns[1::2])]
    if any(MARKER in answer or (MARKER in question and not has_image) for question, answer in pairs):
        raise BadRow("an image marker that means no image")
    return [(text(question.replace(MARKER, ""), "question"), text(answer, "answer")) for question, answer in pairs]
