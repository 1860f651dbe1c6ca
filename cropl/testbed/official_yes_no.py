"""Scenes as POPE and MME publish theirs: is this shape in the image? With LLaVA's question files."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from cropl.data.readers.llava_questions import SHORT_ANSWER
from cropl.data.readers.mme import COGNITION, PERCEPTION
from cropl.testbed.official_files import draw, line, seeded, write_lines
from cropl.testbed.scenes import Scene
from cropl.testbed.world import COLORS, SHAPES

TASKS = (*PERCEPTION, *COGNITION)
APART = ("artwork", "celebrity", "landmark", "posters", "scene")
"""Tasks of MME whose texts and images lie in folders of their own."""

FIRST = {"adversarial": 0, "random": 10_000_000, "popular": 20_000_000}
"""What LLaVA adds to the ids of each category."""


def pope(folder: Path, scenes: Sequence[Scene]) -> None:
    """Three files about the images of ``val2014``: of each scene a shape that is there, and one that is not.

    That one is any (random), the most frequent of all scenes (popular), or shares its colour or its form with something
    that is there (adversarial).
    """
    frequent = [name for name, _ in Counter(name for one in scenes for name in sorted(_present(one))).most_common()]
    rows: dict[str, list[tuple[str, str, str]]] = {category: [] for category in FIRST}
    for one in scenes:
        image = f"COCO_val2014_{one.index + 1:012d}.jpg"
        draw(one, folder / "val2014" / image)
        for category, found in rows.items():
            rng = seeded(one, f"pope {category}")
            absent = _absent(one, rng, near=category == "adversarial")
            if category == "popular":
                absent = next(name for name in [*frequent, absent] if name not in _present(one))
            pair = [(rng.choice(sorted(_present(one))), "yes"), (absent, "no")]
            found += [(image, f"Is there a {name} in the image?", label) for name, label in pair]
    lines = []
    for category, found in rows.items():
        labels = [
            {"question_id": number, "image": image, "text": text, "label": label}
            for number, (image, text, label) in enumerate(found, start=1)
        ]
        write_lines(folder / f"coco_pope_{category}.json", labels)
        lines += [
            line(FIRST[category] + number, image, text + SHORT_ANSWER, category)
            for number, (image, text, _) in enumerate(found, start=1)
        ]
    write_lines(folder / "llava_pope_test.jsonl", lines)


def mme(folder: Path, scenes: Sequence[Scene]) -> None:
    """``MME_Benchmark_release_version``: the scenes dealt out to its 14 tasks, two questions about each."""
    root, lines = folder / "MME_Benchmark_release_version", []
    for place, one in enumerate(scenes):
        task, rng = TASKS[place % len(TASKS)], seeded(one, "mme")
        ending = "png" if task in COGNITION else "jpg"
        texts, images = (f"{task}/questions_answers_YN", f"{task}/images") if task in APART else (task, task)
        image = f"{images}/{one.index + 1:04d}.{ending}"
        draw(one, root / image)
        pair = [(rng.choice(sorted(_present(one))), "Yes"), (_absent(one, rng, near=rng.random() < 0.5), "No")]
        rng.shuffle(pair)
        asked = [(f"Is there a {name} in this image?", label) for name, label in pair]
        gap = "  " if task == "code_reasoning" else " "  # the published files are no more alike
        path = root / texts / f"{one.index + 1:04d}.txt"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("".join(f"{text}{gap}Please answer yes or no.\t{label}\n" for text, label in asked))
        lines += [line(image, image, text + SHORT_ANSWER, task) for text, _ in asked]
    write_lines(folder / "llava_mme.jsonl", lines)


def _present(one: Scene) -> set[str]:
    return {thing.name for thing in one.things if thing.kind != "sign"}


def _absent(one: Scene, rng: random.Random, near: bool) -> str:
    """A shape that is not there; if ``near``, something that is there has its colour or its form."""
    shapes, colors = {thing.kind for thing in one.things}, {thing.color for thing in one.things}
    found = [
        f"{color} {shape}"
        for color in COLORS
        for shape in SHAPES
        if f"{color} {shape}" not in _present(one) and (not near or color in colors or shape in shapes)
    ]
    return rng.choice(found)
