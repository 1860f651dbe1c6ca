"""The region of one question, and how probable the localizer holds each block of the grid to be part of it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image

from cropl.errors import one_line
from cropl.grid import GRID, Region
from cropl.models.localizer import Localizer
from cropl.models.region_distribution import RegionDistribution
from cropl.models.region_sources import ZeroShotGrounding
from cropl.models.vlm import VLM


@dataclass(frozen=True)
class Located:
    """What was told of one question.

    Attributes:
        region: None where nobody tells regions, or nobody could.
        source: `predicted`, `zero_shot` or `none`, as in a study.
        seconds: that it took.
        heat: by rows, the probability of each block to be in the region; None where there is no distribution.
        message: what went wrong, for the user.
    """

    region: Region | None = None
    source: str = "none"
    seconds: float = 0.0
    heat: list[list[float]] | None = None
    message: str = ""


class Locator:
    """Tells regions: with a trained localizer, or an untrained model that grounds, or not at all.

    Args:
        localizer: a trained one.
        grounding: a Qwen2-VL, where there is no localizer.
    """

    def __init__(self, localizer: Localizer | None = None, grounding: VLM | None = None) -> None:
        self.localizer = localizer
        self._grounding = None if grounding is None else ZeroShotGrounding(grounding, 1)

    @property
    def tells(self) -> bool:
        """Whether it tells any."""
        return self.localizer is not None or self._grounding is not None

    def __call__(self, image: Image.Image, question: str) -> Located:
        """Never raises: where a model fails, the message says so and there is no region."""
        ask: Callable[[Image.Image, str], Located]
        if self.localizer is not None:
            ask = self._predict
        elif self._grounding is not None:
            ask = self._ground
        else:
            return Located()
        try:
            return ask(image, question)
        except Exception as error:  # whatever a user's model does, the page goes on
            return Located(message=f"the localizer failed ({one_line(error)[:300]}): every token is kept")

    def _predict(self, image: Image.Image, question: str) -> Located:
        localizer = self.localizer
        assert localizer is not None
        missed, began = localizer.fallbacks, time.perf_counter()
        region = localizer.locate([image], [question])[0]
        seconds = time.perf_counter() - began
        if localizer.fallbacks > missed:
            return Located(None, "predicted", seconds, None, "the localizer named no region: every token is kept")
        heat = coverage(localizer.distribution([image], [question])) if localizer.codec.added_tokens else None
        return Located(region, "predicted", seconds, heat)

    def _ground(self, image: Image.Image, question: str) -> Located:
        assert self._grounding is not None
        missed, began = self._grounding.unparsable, time.perf_counter()
        region = self._grounding([image], [question])[0]
        seconds = time.perf_counter() - began
        if self._grounding.unparsable > missed:
            return Located(None, "zero_shot", seconds, None, "the model named no box: every token is kept")
        return Located(region, "zero_shot", seconds)


def coverage(distribution: RegionDistribution) -> list[list[float]]:
    """By rows, the probability that the region covers each block, for the first question.

    A rectangle covers the block (i, j) if x_min <= i <= x_max and y_min <= j <= y_max.
    """
    p_XYUV = distribution.p_BXYUV[0]
    return [[float(p_XYUV[: i + 1, : j + 1, i:, j:].sum()) for i in range(GRID)] for j in range(GRID)]
