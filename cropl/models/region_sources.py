"""Where a question's region comes from: one interface for the truth, a file, a localizer and the controls.

Every source maps (image, question) pairs to regions and has a `name`, which result rows carry as `region_source`. A
method does not know where its region came from, so the source is all that changes between the columns of the paper's
Table 10.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from PIL import Image

from cropl.data.predicted import read_regions
from cropl.grid import Region

if TYPE_CHECKING:
    from cropl.data.sample import Sample
    from cropl.models.localizer import Localizer
    from cropl.models.vlm import VLM

Images = Sequence[Image.Image]

GROUNDING_PROMPT = "Detect the bounding box of the region that is needed to answer this question: {question}"
"""Asks Qwen2-VL for its own grounding format; it was trained on "detect ... bounding box" instructions."""

_GROUNDING = re.compile(r"\(\s*(\d{1,5})\s*,\s*(\d{1,5})\s*\)\s*,\s*\(\s*(\d{1,5})\s*,\s*(\d{1,5})\s*\)")


@runtime_checkable
class RegionSource(Protocol):
    """One region per (image, question) pair; `samples` gives the sources that need it the key and the truth."""

    name: str

    def __call__(
        self, images: Images, questions: Sequence[str], samples: Sequence[Sample] | None = None
    ) -> list[Region]: ...


def _needed(samples: Sequence[Sample] | None, name: str) -> Sequence[Sample]:
    if samples is None:
        raise ValueError(f"region source {name!r} needs samples, not only images and questions")
    return samples


def _batches(images: Images, questions: Sequence[str], size: int) -> Iterator[tuple[list[Image.Image], list[str]]]:
    for start in range(0, len(questions), size):
        yield list(images[start : start + size]), list(questions[start : start + size])


class GroundTruth:
    """The region that encloses the evidence boxes of each sample."""

    name = "gt"

    def __call__(
        self, images: Images, questions: Sequence[str], samples: Sequence[Sample] | None = None
    ) -> list[Region]:
        return [sample.region for sample in _needed(samples, self.name)]


class Fixed:
    """The same region for every question (`--region` of the command line)."""

    name = "fixed"

    def __init__(self, region: Region) -> None:
        self.region = region

    def __call__(
        self, images: Images, questions: Sequence[str], samples: Sequence[Sample] | None = None
    ) -> list[Region]:
        return [self.region] * len(questions)


class Predicted:
    """A trained localizer's prediction, `batch_size` questions at a time."""

    name = "predicted"

    def __init__(self, localizer: Localizer, batch_size: int = 32) -> None:
        self.localizer, self.batch_size = localizer, batch_size

    def __call__(
        self, images: Images, questions: Sequence[str], samples: Sequence[Sample] | None = None
    ) -> list[Region]:
        regions: list[Region] = []
        for pictures, asked in _batches(images, questions, self.batch_size):
            regions += self.localizer.locate(pictures, asked)
        return regions


class Found:
    """A trained localizer's predictions for these very questions, made beforehand."""

    name = "predicted"

    def __init__(self, regions: Sequence[Region]) -> None:
        self.regions = list(regions)

    def __call__(
        self, images: Images, questions: Sequence[str], samples: Sequence[Sample] | None = None
    ) -> list[Region]:
        if len(questions) != len(self.regions):
            raise ValueError(f"{len(self.regions)} regions for {len(questions)} questions: give one per question")
        return self.regions


class Center:
    """A region of the same size as `of`'s, in the middle of the image (paper, Table 10)."""

    name = "center"

    def __init__(self, of: RegionSource) -> None:
        self.of = of

    def __call__(
        self, images: Images, questions: Sequence[str], samples: Sequence[Sample] | None = None
    ) -> list[Region]:
        return [region.centered() for region in self.of(images, questions, samples)]


class Random:
    """A region of the same size as `of`'s at a random place (paper, Table 10).

    The place is drawn from the seed and the sample's key (its question where there is no key), so it depends neither
    on the order of the questions nor on the batch size.
    """

    name = "random"

    def __init__(self, of: RegionSource, seed: int = 0) -> None:
        self.of, self.seed = of, seed

    def __call__(
        self, images: Images, questions: Sequence[str], samples: Sequence[Sample] | None = None
    ) -> list[Region]:
        keys = questions if samples is None else [sample.key for sample in samples]
        regions = self.of(images, questions, samples)
        return [region.moved(random.Random(f"{self.seed}-{key}")) for region, key in zip(regions, keys, strict=True)]


class Known:
    """Regions that were found beforehand, by the samples' keys."""

    name = "predicted"

    def __init__(self, regions: Mapping[str, Region]) -> None:
        self.regions = regions

    def __call__(
        self, images: Images, questions: Sequence[str], samples: Sequence[Sample] | None = None
    ) -> list[Region]:
        return [self.regions[sample.key] for sample in _needed(samples, f"{self.name} (known)")]


class FromFile:
    """Regions from a `regions.jsonl`, see :mod:`cropl.data.predicted`: found by key, else by image and question.

    Raises:
        ValueError: as :func:`~cropl.data.predicted.read_regions`. Also when a question is in no line.
    """

    name = "file"

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._regions = read_regions(path)

    def __call__(
        self, images: Images, questions: Sequence[str], samples: Sequence[Sample] | None = None
    ) -> list[Region]:
        return [self._find(sample) for sample in _needed(samples, self.name)]

    def _find(self, sample: Sample) -> Region:
        image = Path(sample.image).name if isinstance(sample.image, (str, Path)) else sample.key
        for lookup in (("key", sample.key), ("question", image, sample.question), ("image", image)):
            if lookup in self._regions:
                return Region(*self._regions[lookup])
        raise ValueError(f"{self.path}: no region for key {sample.key!r}, image {image!r}; add a line for it")


def parse_grounding(text: str) -> Region | None:
    """Qwen2-VL's boxes `<|box_start|>(x0,y0),(x1,y1)<|box_end|>`, 0..1000 of each side, as one enclosing region.

    Several boxes are enclosed together, as several evidence boxes are. None where there is no box with an area; never
    raises, whatever the model wrote.
    """
    boxes = [tuple(min(int(number), 1000) for number in match) for match in _GROUNDING.findall(text)]
    try:
        return Region.from_boxes(boxes, 1000, 1000) if boxes else None
    except ValueError:
        return None


class ZeroShotGrounding:
    """Regions from a Qwen2-VL that was never trained as a localizer: its own grounding boxes, mapped to the grid.

    Where its answer holds no usable box every token is kept (the full region), and `unparsable` counts it.
    """

    name = "zero_shot"

    def __init__(self, vlm: VLM, batch_size: int = 8, max_new_tokens: int = 64) -> None:
        self.vlm, self.batch_size, self.max_new_tokens = vlm, batch_size, max_new_tokens
        self.unparsable = 0

    def __call__(
        self, images: Images, questions: Sequence[str], samples: Sequence[Sample] | None = None
    ) -> list[Region]:
        regions: list[Region] = []
        for pictures, asked in _batches(images, questions, self.batch_size):
            inputs = self.vlm.inputs(pictures, [GROUNDING_PROMPT.format(question=question) for question in asked])
            for text in self.vlm.generate(inputs, max_new_tokens=self.max_new_tokens, do_sample=False):
                region = parse_grounding(text)
                self.unparsable += region is None
                regions.append(region or Region.full())
        return regions
