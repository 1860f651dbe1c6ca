"""The closed world of the testbed: its shapes, colours, words, question kinds and photographs.

Everything else in :mod:`cropl.testbed` derives from these lists: the renderer, the questions, the dense labels that the
vision towers are pre-trained on, and the vocabulary of the tiny models.
"""

from __future__ import annotations

from pathlib import Path

SPLITS = ("train", "val", "test")
SHAPES = ("circle", "square", "triangle", "star", "cross", "heart")
COLORS: dict[str, tuple[int, int, int]] = {
    "red": (215, 38, 38),
    "green": (40, 160, 62),
    "blue": (45, 85, 225),
    "yellow": (242, 222, 48),
    "purple": (146, 58, 190),
    "orange": (245, 138, 30),
    "white": (246, 246, 246),
    "black": (24, 24, 24),
}
WORDS = ("stop", "exit", "cafe", "bank", "fuel", "gym", "zoo", "taxi", "milk", "park", "shop", "dry")
SIDES = ("left", "right", "above", "below")
COUNTS = ("1", "2", "3", "4")
LETTERS = ("A", "B", "C")

KINDS = ("text", "attribute", "relation", "count", "existence", "choice")
"""The six question kinds, after what the paper's benchmarks ask: TextVQA (text), GQA and VQAv2 (attribute, relation,
count), POPE (existence) and ScienceQA (multiple choice)."""

PHOTO_FOLDER = Path(__file__).parent / "photos"
