"""What finds regions in the pipeline's first stage: a localizer, or an untrained model's own grounding."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from PIL import Image

from cropl.evaluation.pipeline.items import Asked, Failed, Located, isolated
from cropl.grid import Region
from cropl.models.localizer import Localizer
from cropl.models.region_sources import ZeroShotGrounding
from cropl.models.vlm import load_vlm


class Locator(Protocol):
    """What finds regions: a `Localizer`, or anything like it."""

    def locate(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[Region]:
        """One region per (image, question)."""


@dataclass(frozen=True)
class Load:
    """Makes a locator of a checkpoint, in whatever process it is called.

    Attributes:
        name: folder, hub name, or `testbed:NAME`.
        device, dtype: see `VLM.from_pretrained`.
        zero_shot: it is no trained localizer but a Qwen2-VL, which is asked for its own grounding.
    """

    name: str
    device: str | None = None
    dtype: torch.dtype | str | None = None
    zero_shot: bool = False

    def __call__(self) -> Locator:
        if self.zero_shot:
            return Grounded(ZeroShotGrounding(load_vlm(self.name, self.dtype, self.device)))
        return Localizer.from_pretrained(self.name, dtype=self.dtype, device=self.device)


class Grounded:
    """Zero-shot grounding as a locator; `fallbacks` counts the answers that named no box."""

    def __init__(self, source: ZeroShotGrounding) -> None:
        self._source, self.vlm = source, source.vlm

    @property
    def fallbacks(self) -> int:
        return self._source.unparsable

    def locate(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[Region]:
        return self._source(images, questions)


def locate_batch(locator: Locator, batch: Sequence[Asked]) -> list[Located]:
    """A region for each question, or why there is none; one that cannot be located leaves the others alone.

    Answers that were no region are only counted by a locator; a batch with such is asked again, one by one.
    """
    began = time.perf_counter()

    def locate(some: list[tuple[Image.Image, str]]) -> list[Region]:
        before = getattr(locator, "fallbacks", 0)
        regions = locator.locate([image for image, _ in some], [question for _, question in some])
        if getattr(locator, "fallbacks", 0) > before:
            raise ValueError("the localizer's answer was no region")
        return regions

    pictures = [each.picture() for each in batch]
    good = [(picture, each.question) for picture, each in zip(pictures, batch) if not isinstance(picture, Failed)]
    regions = iter(isolated(locate, good))
    found = [picture if isinstance(picture, Failed) else next(regions) for picture in pictures]
    seconds = (time.perf_counter() - began) / max(len(batch), 1)
    return [
        Located(None, each.reason, seconds) if isinstance(each, Failed) else Located(each, None, seconds)
        for each in found
    ]
