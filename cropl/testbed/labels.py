"""Dense labels of a scene: what lies on each cell of a token grid. The vision towers are pre-trained on them."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cropl.grid import TokenGrid
from cropl.testbed.scenes import Scene
from cropl.testbed.world import COLORS, SHAPES, WORDS

KIND_NAMES = ("background", *SHAPES, "sign")
_COLOR_IDS = {name: i for i, name in enumerate(COLORS)}
IGNORE = -100


@dataclass(frozen=True)
class DenseLabels:
    """Labels of V cells: class ids (``IGNORE`` where a label does not apply), centre flags, boxes as fractions."""

    kind_V: np.ndarray
    color_V: np.ndarray
    word_V: np.ndarray
    center_V: np.ndarray
    box_V4: np.ndarray

    def as_row(self) -> np.ndarray:
        """Everything in one float32 array of shape (V, 8)."""
        ids = np.stack([self.kind_V, self.color_V, self.word_V, self.center_V], axis=1)
        return np.concatenate([ids, self.box_V4], axis=1).astype(np.float32)


def dense_labels(scene: Scene, grid: TokenGrid) -> DenseLabels:
    """Label the cells of ``grid``, row-major, by what is under their centres. Boxes are in fractions of its window."""
    cell_w, cell_h = grid.width / grid.cols, grid.height / grid.rows
    y_V, x_V = (axis.ravel() for axis in np.mgrid[: grid.rows, : grid.cols])
    x_V = grid.left + (x_V + 0.5) * cell_w
    y_V = grid.top + (y_V + 0.5) * cell_h
    n = len(x_V)
    kind, color, word, center = (np.full(n, fill) for fill in (0, IGNORE, IGNORE, 0))
    box_V4 = np.zeros((n, 4))
    origin = np.array([grid.left, grid.top, grid.left, grid.top])
    extent = np.array([grid.width, grid.height, grid.width, grid.height])
    for thing in scene.things:
        x0, y0, x1, y1 = thing.box
        inside = (x_V > x0) & (x_V < x1) & (y_V > y0) & (y_V < y1)
        kind[inside] = KIND_NAMES.index(thing.kind)
        color[inside] = _COLOR_IDS[thing.color]
        if thing.word:
            word[inside] = WORDS.index(thing.word)
        cx, cy = thing.center
        center[(np.abs(x_V - cx) <= cell_w / 2) & (np.abs(y_V - cy) <= cell_h / 2)] = 1
        box_V4[inside] = (np.array(thing.box) - origin) / extent
    return DenseLabels(kind, color, word, center, box_V4)
