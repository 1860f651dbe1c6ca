"""Makes training batches of samples: pictures as a model's tower takes them, each with its question."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cropl.data.sample import Sample
from cropl.grid import Region, TokenGrid

Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Prepared:
    """One picture as its family's vision tower takes it.

    Attributes:
        pixels: (3, H, W), or (P, E) flattened patches.
        patches: (rows, columns) of the tower's patches.
        tokens: where the visual tokens that the decoder gets lie over the picture.
    """

    pixels: Tensor
    patches: tuple[int, int]
    tokens: TokenGrid


class SampleCollate:
    """A training batch of a list of :class:`Sample`: one picture and one question a row. Runs in the loader's workers.

    Args:
        prepare: makes a :class:`Prepared` of a picture; a model family's ``VLM.prepare``, which holds no weights.

    The batch has ``pixels``, ``grids`` (patches), ``pictures`` (functions that give a PIL picture) and ``questions``:
    per picture a list of one row with ``kind``, ``question``, ``answer`` (the first accepted one), ``region``,
    ``evidence`` (bool (2, V), the tokens on the boxes, twice; none where the region is the whole picture, as for an
    absence) and ``valid`` (False for a repetition in evaluation).
    """

    def __init__(self, prepare: Callable[[Image.Image], Prepared]):
        self.prepare = prepare

    def __call__(self, samples: list[Sample]) -> dict[str, Any]:
        shown = [sample.picture for sample in samples]
        prepared = [self.prepare(picture()) for picture in shown]
        return {
            "pixels": [one.pixels for one in prepared],
            "grids": [one.patches for one in prepared],
            "questions": [[_row(sample, one.tokens)] for sample, one in zip(samples, prepared)],
            "pictures": shown,
        }


def cells_in(boxes: Sequence[Box], grid: TokenGrid) -> Tensor:
    """Bool (V,): the tokens of ``grid`` whose centre lies in one of the boxes."""
    y_V, x_V = (axis.ravel() for axis in np.mgrid[: grid.rows, : grid.cols])
    x_V = grid.left + (x_V + 0.5) * grid.width / grid.cols
    y_V = grid.top + (y_V + 0.5) * grid.height / grid.rows
    inside = [(x_V > x0) & (x_V < x1) & (y_V > y0) & (y_V < y1) for x0, y0, x1, y1 in boxes]
    return torch.from_numpy(np.any(inside, axis=0)) if inside else torch.zeros(grid.num_tokens, dtype=torch.bool)


def _row(sample: Sample, grid: TokenGrid) -> dict[str, Any]:
    return {
        "kind": sample.kind,
        "question": sample.question,
        "answer": sample.answers[0],
        "region": list(sample.region.as_tuple()),
        "evidence": cells_in([] if sample.region == Region.full() else sample.boxes, grid).expand(2, -1),
        "valid": sample.valid,
    }
