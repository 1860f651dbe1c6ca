"""Questions about a scene, of six kinds, each with its answer and its evidence boxes by construction.

The evidence is what has to be seen to answer: the object asked about; both objects of a relation; all the objects of a
count; the whole picture for an absence. At most one question of a kind is drawn twice per scene.
"""

from __future__ import annotations

import random
from collections import Counter
from dataclasses import dataclass

from cropl.data.sample import Box
from cropl.testbed.scenes import Scene, Thing, _rng
from cropl.testbed.world import COLORS, LETTERS, SHAPES


@dataclass(frozen=True)
class Question:
    kind: str
    text: str
    answer: str
    boxes: tuple[Box, ...]


def questions(scene: Scene, per_kind: int = 2) -> list[Question]:
    """Up to ``per_kind`` distinct questions of each kind that the scene allows, in a seeded order."""
    rng = _rng(scene.split, scene.index, "ask")
    asked: list[Question] = []
    for ask in (_text, _attribute, _relation, _count, _existence, _choice):
        candidates = ask(scene, rng)
        rng.shuffle(candidates)
        asked += candidates[:per_kind]
    rng.shuffle(asked)
    return asked


def _shapes(scene: Scene) -> list[Thing]:
    return [t for t in scene.things if t.kind != "sign"]


def _unique_by_kind(scene: Scene) -> list[Thing]:
    counts = Counter(t.kind for t in scene.things)
    return [t for t in _shapes(scene) if counts[t.kind] == 1]


def _unique_by_color(scene: Scene) -> list[Thing]:
    counts = Counter(t.color for t in scene.things)
    return [t for t in _shapes(scene) if counts[t.color] == 1]


def _text(scene: Scene, rng: random.Random) -> list[Question]:
    signs = [t for t in scene.things if t.kind == "sign"]
    return [Question("text", f"What word is on the {t.color} sign?", t.word or "", (t.box,)) for t in signs]


def _attribute(scene: Scene, rng: random.Random) -> list[Question]:
    colors = [Question("attribute", f"What color is the {t.kind}?", t.color, (t.box,)) for t in _unique_by_kind(scene)]
    shapes = [Question("attribute", f"What shape is {t.color}?", t.kind, (t.box,)) for t in _unique_by_color(scene)]
    return colors + shapes


def _relation(scene: Scene, rng: random.Random) -> list[Question]:
    """On which side of one thing its neighbour lies; only pairs that are near and clearly on one side."""
    unit = max(scene.width, scene.height)
    names = Counter(t.name for t in scene.things)
    things = [t for t in scene.things if names[t.name] == 1]
    found = []
    for a in things:
        for b in things:
            if a is b:
                continue
            dx, dy = a.center[0] - b.center[0], a.center[1] - b.center[1]
            near = max(abs(dx), abs(dy)) < 0.42 * unit
            if near and abs(dx) > 1.6 * abs(dy):
                side = "left" if dx < 0 else "right"
            elif near and abs(dy) > 1.6 * abs(dx):
                side = "above" if dy < 0 else "below"
            else:
                continue
            text = f"On which side of the {b.name} is the {a.name}?"
            found.append(Question("relation", text, side, (a.box, b.box)))
    return found


def _count(scene: Scene, rng: random.Random) -> list[Question]:
    counts = Counter(t.kind for t in _shapes(scene))
    flock = max(counts, key=lambda kind: counts[kind])
    kinds = [flock] if len(counts) == 1 or rng.random() < 0.85 else [rng.choice([k for k in counts if k != flock])]
    return [
        Question(
            "count",
            f"How many {k} shapes are there?",
            str(counts[k]),
            tuple(t.box for t in scene.things if t.kind == k),
        )
        for k in kinds
    ]


def _existence(scene: Scene, rng: random.Random) -> list[Question]:
    """Sixty in a hundred are present; an absent one shares its colour or its shape with something that is there."""
    whole = (0.0, 0.0, float(scene.width), float(scene.height))
    shapes = _shapes(scene)
    names = {t.name for t in scene.things}
    if rng.random() < 0.6:
        t = rng.choice(shapes)
        boxes = tuple(other.box for other in shapes if other.name == t.name)
        return [Question("existence", f"Is there a {t.name}?", "yes", boxes)]
    absent = [f"{t.color} {k}" for t in scene.things for k in SHAPES] + [
        f"{c} {t.kind}" for t in shapes for c in COLORS
    ]
    absent = sorted(set(absent) - names)
    return [Question("existence", f"Is there a {rng.choice(absent)}?", "no", (whole,))]


def _choice(scene: Scene, rng: random.Random) -> list[Question]:
    found = []
    for t in _unique_by_kind(scene):
        found.append(_lettered(rng, f"What color is the {t.kind}?", t.color, list(COLORS), t.box))
    for t in _unique_by_color(scene):
        found.append(_lettered(rng, f"What shape is {t.color}?", t.kind, list(SHAPES), t.box))
    return found


def _lettered(rng: random.Random, stem: str, answer: str, options: list[str], box: Box) -> Question:
    shown = [answer, *rng.sample([o for o in options if o != answer], len(LETTERS) - 1)]
    rng.shuffle(shown)
    listed = " ".join(f"{letter} {option}" for letter, option in zip(LETTERS, shown))
    return Question("choice", f"{stem} {listed}", LETTERS[shown.index(answer)], (box,))
