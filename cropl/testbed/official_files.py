"""What the official exports of the testbed share: files, pictures, ten annotators, and LLaVA's lines."""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from cropl.testbed.scenes import Scene, _rng

NOTHING = "unanswerable"


def seeded(one: Scene, benchmark: str) -> random.Random:
    """The random numbers of a scene in a benchmark."""
    return _rng(one.split, one.index, f"official {benchmark}")


def write(path: Path, value: Any) -> None:
    """A JSON value."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """A JSON value on each line."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def draw(one: Scene, path: Path) -> None:
    """A scene as an image file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    one.render().save(path, quality=95)


def line(id: int | str, image: str, text: str, category: str = "default") -> dict[str, Any]:
    """A line of LLaVA's question files."""
    return {"question_id": id, "image": image, "text": text, "category": category}


def ten(rng: random.Random, answer: str, others: Sequence[str]) -> list[str]:
    """What ten annotators say: three to ten of them the answer, as a rule nearly all."""
    agree = rng.choice((10, 10, 10, 9, 8, 6, 3))
    said = [answer] * agree + [rng.choice([*others, NOTHING]) for _ in range(10 - agree)]
    rng.shuffle(said)
    return said
