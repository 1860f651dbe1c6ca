"""Scenes as GQA, TextVQA, ScienceQA and VQAv2 publish theirs, with LLaVA's question file beside each."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cropl.data.readers.llava_questions import SHORT_ANSWER
from cropl.testbed.official_files import draw, line, seeded, ten, write, write_lines
from cropl.testbed.questions import Question, questions
from cropl.testbed.scenes import Scene
from cropl.testbed.world import COLORS, COUNTS, LETTERS, SHAPES, WORDS

TYPES = {
    "attribute": ("query", "attr"),
    "relation": ("query", "rel"),
    "count": ("query", "global"),
    "existence": ("verify", "obj"),
}
"""GQA's structural and semantic types of our kinds; GQA itself counts nothing."""

ANSWER_TYPES = {"attribute": "other", "count": "number", "existence": "yes/no"}
"""VQAv2's."""

_LETTERED = re.compile(r"(.*\?) " + " ".join(f"{letter} (.+)" for letter in LETTERS))


def gqa(folder: Path, scenes: Sequence[Scene]) -> None:
    """``testdev_balanced_questions.json`` and ``images``."""
    records: dict[str, Any] = {}
    for one in scenes:
        image = f"n{one.index + 1}"
        draw(one, folder / "images" / f"{image}.jpg")
        for question in _of_kinds(one, *TYPES):
            structural, semantic = TYPES[question.kind]
            records[str(200_000_001 + len(records))] = {
                "question": question.text,
                "imageId": image,
                "answer": question.answer,
                "fullAnswer": f"{question.answer.capitalize()}.",
                "isBalanced": True,
                "types": {"structural": structural, "semantic": semantic, "detailed": question.kind},
                "groups": {"global": None, "local": None},
                "entailed": [],
                "equivalent": [],
                "semantic": [],
                "semanticStr": "",
                "annotations": {"question": {}, "answer": {}, "fullAnswer": {}},
            }
    write(folder / "testdev_balanced_questions.json", records)
    asked = [line(id, f"{row['imageId']}.jpg", row["question"] + SHORT_ANSWER) for id, row in records.items()]
    write_lines(folder / "llava_gqa_testdev_balanced.jsonl", asked)


def textvqa(folder: Path, scenes: Sequence[Scene]) -> None:
    """``TextVQA_0.5.1_val.json`` and ``train_images``; LLaVA's prompts name every word that a picture has."""
    data: list[dict[str, Any]] = []
    asked = []
    for one in scenes:
        rng = seeded(one, "textvqa")
        image = hashlib.sha256(f"{one.split} {one.index}".encode()).hexdigest()[:16]
        draw(one, folder / "train_images" / f"{image}.jpg")
        words = [thing.word.upper() for thing in one.things if thing.word]
        rng.shuffle(words)
        for question in (q for q in questions(one) if q.kind == "text"):
            data.append(
                {
                    "question_id": 34_602 + len(data),
                    "image_id": image,
                    "image_width": one.width,
                    "image_height": one.height,
                    "image_classes": ["Sign"],
                    "question": question.text.lower(),
                    "answers": ten(rng, question.answer, [word.lower() for word in words]),
                    "set_name": "val",
                }
            )
            tokens = f"\nReference OCR token: {', '.join(words)}"
            asked.append(line(image, f"{image}.jpg", question.text + tokens + SHORT_ANSWER))
    about = {"dataset_type": "val", "dataset_name": "textvqa", "dataset_version": "0.5.1"}
    write(folder / "TextVQA_0.5.1_val.json", {**about, "data": data})
    write_lines(folder / "llava_textvqa_val_v051_ocr.jsonl", asked)


def scienceqa(folder: Path, scenes: Sequence[Scene]) -> None:
    """``problems.json``, ``pid_splits.json`` and ``images``; behind every second problem comes one of text alone."""
    problems: dict[str, Any] = {}
    for one in scenes:
        rng = seeded(one, "scienceqa")
        for question in _of_kinds(one, "choice"):
            lettered = _LETTERED.fullmatch(question.text)
            assert lettered is not None
            stem, *choices = lettered.groups()
            hint = rng.choice(["", "Look at the picture."])
            id = str(len(problems) + 1)
            problems[id] = _problem(stem, choices, LETTERS.index(question.answer), hint, "image.png")
            draw(one, folder / "images" / "test" / id / "image.png")
        if one.index % 2:
            words = rng.sample(WORDS, len(LETTERS))
            right = words.index(min(words))
            hint = rng.choice(["", "The alphabet begins with a."])
            stem = "Which word comes first in the alphabet?"
            problems[str(len(problems) + 1)] = _problem(stem, words, right, hint, None)
    write(folder / "problems.json", problems)
    ids = list(problems)
    write(folder / "pid_splits.json", {"train": [], "val": [], "test": ids, "minitest": ids[: len(ids) // 2]})
    write(folder / "llava_test_CQM-A.json", [_conversation(id, problem) for id, problem in problems.items()])


def vqav2(folder: Path, scenes: Sequence[Scene]) -> None:
    """Questions and annotations of ``val2014``, with the folder of its images."""
    asked, annotations, lines = [], [], []
    for one in scenes:
        rng = seeded(one, "vqav2")
        number = one.index + 1
        image = f"COCO_val2014_{number:012d}.jpg"
        draw(one, folder / "val2014" / image)
        for place, question in enumerate(_of_kinds(one, *ANSWER_TYPES)):
            names = {"question_id": 1000 * number + place, "image_id": number}
            said = ten(rng, question.answer, _alike(question.answer))
            asked.append({**names, "question": question.text})
            annotations.append(
                {
                    **names,
                    "question_type": " ".join(question.text.lower().split()[:2]),
                    "answer_type": ANSWER_TYPES[question.kind],
                    "multiple_choice_answer": question.answer,
                    "answers": [
                        {"answer": answer, "answer_confidence": "yes", "answer_id": place + 1}
                        for place, answer in enumerate(said)
                    ],
                }
            )
            lines.append(line(names["question_id"], image, question.text + SHORT_ANSWER))
    about = {"data_type": "mscoco", "data_subtype": "val2014"}
    write(folder / "v2_OpenEnded_mscoco_val2014_questions.json", {**about, "questions": asked})
    write(folder / "v2_mscoco_val2014_annotations.json", {**about, "annotations": annotations})
    write_lines(folder / "llava_vqav2_mscoco_val2014.jsonl", lines)


def _of_kinds(one: Scene, *kinds: str) -> list[Question]:
    """The first question of each kind that the scene allows."""
    found: dict[str, Question] = {}
    for question in questions(one):
        if question.kind in kinds:
            found.setdefault(question.kind, question)
    return list(found.values())


def _alike(answer: str) -> list[str]:
    """Other answers of its sort."""
    sorts = (tuple(COLORS), SHAPES, COUNTS, ("yes", "no"))
    return [other for sort in sorts if answer in sort for other in sort if other != answer]


def _problem(question: str, choices: Sequence[str], answer: int, hint: str, image: str | None) -> dict[str, Any]:
    return {
        "question": question,
        "choices": list(choices),
        "answer": answer,
        "hint": hint,
        "image": image,
        "task": "closed choice",
        "grade": "grade1",
        "subject": "natural science" if image else "language science",
        "topic": "",
        "category": "",
        "skill": "",
        "lecture": "",
        "solution": "",
        "split": "test",
    }


def _conversation(id: str, problem: dict[str, Any]) -> dict[str, Any]:
    """A row of LLaVA's file, which appends the request for a letter when it asks."""
    context = [f"Context: {problem['hint']}"] if problem["hint"] else []
    options = [f"{letter}. {choice}" for letter, choice in zip(LETTERS, problem["choices"], strict=True)]
    text = "\n".join([*context, problem["question"], *options])
    image = {"image": f"{id}/{problem['image']}"} if problem["image"] else {}
    turns = [
        {"from": "human", "value": f"<image>\n{text}" if image else text},
        {"from": "gpt", "value": f"The answer is {LETTERS[problem['answer']]}."},
    ]
    return {"id": id, **image, "conversations": turns}
