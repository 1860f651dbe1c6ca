"""Makes training batches of samples: pictures as a model's tower takes them, and what is asked about each."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cropl.data.images import load_image
from cropl.data.sample import Box, Sample
from cropl.grid import Region, TokenGrid
from cropl.prompt import clean_question
from cropl.tiling import TileGrid, TokenMap, Tokens


@dataclass(frozen=True)
class Prepared:
    """One picture as its family's vision tower takes it.

    Attributes:
        pixels: (3, H, W), or (P, E) flattened patches, or (P, 3, H, W) crops; uint8 are normalised by the model, floats
            are already.
        patches: (rows, columns) of the tower's patches; where crops decide on them, the picture's height and width.
        tokens: where the visual tokens that the decoder gets lie over the picture.
    """

    pixels: Tensor
    patches: tuple[int, int]
    tokens: Tokens


class SampleCollate:
    """A training batch of a list of :class:`Sample`: one sample a document. Runs in the loader's workers.

    Args:
        prepare: makes a :class:`Prepared` of a picture; a model family's ``VLM.prepare``, which holds no weights.

    The batch has ``pixels``, ``grids`` (patches), ``tokens`` (the :class:`TokenGrid` of the visual tokens) and
    ``pictures`` (functions that give a PIL picture) for each picture; for each document ``images``, the number of its
    picture or None, and ``questions``, a list of one row with ``key``, ``kind``, ``source``, ``question``, ``answer``
    (the first accepted one), ``turns`` (the whole conversation), ``region``, ``predicted`` (a localizer's region, where
    the data has it), ``localize`` (whether there are boxes, so that the region is a truth), ``evidence`` (bool (2, V),
    the tokens on the boxes, twice; none where the region is the whole picture, as for an absence; only with a picture)
    and ``valid`` (False for a repetition or a stand-in). A batch of texts alone has one blank picture that no document
    refers to: the tower and its projector then run in every step, on every process.

    Raises:
        ValueError: a sample has no answer, or a question that is empty; the message names it.
    """

    def __init__(self, prepare: Callable[[Image.Image], Prepared]):
        self.prepare = prepare

    def __call__(self, samples: list[Sample]) -> dict[str, Any]:
        seen = [sample for sample in samples if sample.image is not None]
        shown = [sample.picture for sample in seen] or [_blank]
        prepared = [self.prepare(picture()) for picture in shown]
        number = iter(range(len(seen)))
        images = [None if sample.image is None else next(number) for sample in samples]
        return {
            "pixels": [one.pixels for one in prepared],
            "grids": [one.patches for one in prepared],
            "tokens": [one.tokens for one in prepared],
            "questions": [
                [_row(sample, None if image is None else prepared[image].tokens)]
                for sample, image in zip(samples, images)
            ],
            "images": images,
            "pictures": [partial(load_image, s.encoded) if s.encoded else s.picture for s in seen] or [_blank],
        }


def _blank() -> Image.Image:
    return Image.new("RGB", (56, 56))


def cells_in(boxes: Sequence[Box], tokens: Tokens) -> Tensor:
    """Bool (V,): the tokens whose centre lies in one of the boxes; a newline token is nowhere."""
    parts = tokens.grids if isinstance(tokens, TokenMap) else (tokens,)
    found = [_centred(boxes, part, tokens.image_width, tokens.image_height) for part in parts]
    return torch.cat(found)


def _centred(boxes: Sequence[Box], grid: Tokens, width: int, height: int) -> Tensor:
    if not isinstance(grid, TokenGrid):
        raise ValueError(f"{type(grid).__name__} is no grid: a token's centre is not known")
    y_V, x_V = (axis.ravel() for axis in np.mgrid[: grid.rows, : grid.cols])
    x_V = (grid.left + (x_V + 0.5) * grid.width / grid.cols) * (width / grid.image_width)
    y_V = (grid.top + (y_V + 0.5) * grid.height / grid.rows) * (height / grid.image_height)
    inside = [(x_V > x0) & (x_V < x1) & (y_V > y0) & (y_V < y1) for x0, y0, x1, y1 in boxes]
    mask = np.any(inside, axis=0) if inside else np.zeros(len(x_V), dtype=bool)
    order = grid.order() if isinstance(grid, TileGrid) else range(len(mask))
    return torch.tensor([place is not None and bool(mask[place]) for place in order])


def _row(sample: Sample, grid: Tokens | None) -> dict[str, Any]:
    turns = sample.conversation
    try:
        for question, _ in turns:
            clean_question(question)
    except ValueError as error:
        raise ValueError(f"sample {sample.key!r}: {error}") from None
    row = {
        "key": sample.key,
        "kind": sample.kind,
        "source": sample.source,
        "question": sample.question,
        "answer": sample.answers[0],
        "turns": turns,
        "region": list(sample.region.as_tuple()),
        "localize": bool(sample.boxes),
        "valid": sample.valid,
    }
    if sample.predicted is not None:
        row["predicted"] = list(sample.predicted.as_tuple())
    if grid is not None:
        size = grid.image_width, grid.image_height  # a large image may have been decoded at a fraction of its size
        boxes = [] if sample.region == Region.full() else sample.boxes_on(*size)
        row["evidence"] = cells_in(boxes, grid).expand(2, -1)
    return row
