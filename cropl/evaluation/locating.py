"""Asks the models that tell regions, once per question; what they said is written down, and never asked again."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from cropl.evaluation.journal import Finds
from cropl.evaluation.part import Part
from cropl.evaluation.pictures import by_image, displayed
from cropl.evaluation.progress import Stages
from cropl.evaluation.study import Study
from cropl.grid import Region
from cropl.models import region_sources as sources
from cropl.models.vlm import VLM

if TYPE_CHECKING:
    from PIL import Image

    from cropl.data.sample import Sample
    from cropl.models.localizer import Localizer

POLL = 1.0
"""Seconds between two looks at what the other parts have found."""

PATIENCE = 600
"""Seconds without any find after which a part no longer waits for the others, and locates the rest itself."""

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Located:
    """What a model said of one question: a region, or what was no region (`malformed`, the full one stands for it)."""

    region: Region
    malformed: bool
    seconds: float


def models_asked(
    study: Study, localizer: Localizer | None, grounding: VLM | None
) -> dict[str, Flagged | sources.ZeroShotGrounding]:
    """The sources of regions that take a model."""
    asked: dict[str, Flagged | sources.ZeroShotGrounding] = {}
    if localizer is not None:
        asked["predicted"] = Flagged(localizer, study.batch_size)
    if grounding is not None:
        asked["zero_shot"] = sources.ZeroShotGrounding(grounding, study.batch_size)
    return asked


def locate(
    asked: Mapping[str, Flagged | sources.ZeroShotGrounding],
    samples: Sequence[Sample],
    batch_size: int,
    finds: Finds,
    part: Part,
    stages: Stages,
) -> dict[str, dict[str, Located]]:
    """For every source in `asked`, what it says of every question, by the question's key.

    Args:
        asked: the sources.
        samples: the questions.
        batch_size: of them at a time.
        finds: what is known already, and where more goes.
        part: which share of the questions this process asks; the others' finds are waited for, and where none come
            for a while (a part has died, or is yet to be started) it asks the rest too.
        stages: where progress goes.
    """
    known: dict[str, dict[str, Located]] = {name: {} for name in asked}
    if not asked:
        return known
    _take(known, finds)
    groups = by_image(samples)
    _locate_these(part.share(groups), known, asked, samples, batch_size, finds, stages)
    if _left(known, samples):
        with finds.released():
            _wait_for_others(known, samples, finds, stages)
    if _left(known, samples):
        _log.warning("the other parts have found no region for %d s: part %d goes on alone", PATIENCE, part.index)
        _locate_these(groups, known, asked, samples, batch_size, finds, stages)
    return known


def _locate_these(
    groups: Sequence[Sequence[int]],
    known: dict[str, dict[str, Located]],
    asked: Mapping[str, Flagged | sources.ZeroShotGrounding],
    samples: Sequence[Sample],
    batch_size: int,
    finds: Finds,
    stages: Stages,
) -> None:
    """Ask what is not known of the questions in `groups`."""
    new = [[i for i in group if any(samples[i].key not in found for found in known.values())] for group in groups]
    total, count = sum(map(len, groups)), sum(map(len, new))
    stages.stage("localizing", total)
    stages.advance("", total - count)
    for indices, images in _batches(samples, [group for group in new if group], batch_size):
        for name, source in asked.items():
            places = [place for place, i in enumerate(indices) if samples[i].key not in known[name]]
            finds.append(_ask(name, source, [samples[indices[p]] for p in places], [images[p] for p in places]))
        stages.advance("", len(indices))
    _take(known, finds)


def _wait_for_others(
    known: dict[str, dict[str, Located]], samples: Sequence[Sample], finds: Finds, stages: Stages
) -> None:
    """Until all parts have located theirs, or none has found anything for a while."""
    left = _left(known, samples)
    stages.stage("waiting for the other parts' regions", left)
    last = time.monotonic()
    while left and time.monotonic() - last < PATIENCE:
        time.sleep(POLL)
        _take(known, finds)
        before, left = left, _left(known, samples)
        if left < before:
            last = time.monotonic()
        stages.advance("", before - left)


def _left(known: Mapping[str, Mapping[str, Located]], samples: Sequence[Sample]) -> int:
    return max(sum(sample.key not in found for sample in samples) for found in known.values())


def _take(known: dict[str, dict[str, Located]], finds: Finds) -> None:
    for one in finds.read():
        if one.get("source") in known:
            located = Located(Region(*one["region"]), one["malformed"], one["seconds"])
            known[one["source"]].setdefault(one["key"], located)


def _ask(
    name: str,
    source: Flagged | sources.ZeroShotGrounding,
    samples: Sequence[Sample],
    images: Sequence[Image.Image],
) -> list[dict[str, object]]:
    began = time.perf_counter()
    regions = source(images, [sample.question for sample in samples], samples) if samples else []
    share = (time.perf_counter() - began) / max(len(samples), 1)
    malformed = source.malformed if isinstance(source, Flagged) else set()
    return [
        {"source": name, "key": sample.key, "region": list(region.as_tuple()), "malformed": sample.key in malformed,
         "seconds": share}
        for sample, region in zip(samples, regions, strict=True)
    ]  # fmt: skip


def _batches(
    samples: Sequence[Sample], groups: Sequence[Sequence[int]], batch_size: int
) -> Iterator[tuple[list[int], list[Image.Image]]]:
    """Questions and their images, `batch_size` at a time or a few more: an image is opened once for its questions."""
    indices: list[int] = []
    images: list[Image.Image] = []
    for group in groups:
        image = displayed(samples[group[0]])
        indices += group
        images += [image] * len(group)
        if len(indices) >= batch_size:
            yield indices, images
            indices, images = [], []
    if indices:
        yield indices, images


class Flagged(sources.Predicted):
    """A localizer's predictions; `malformed` holds the keys of the samples whose answer was no region.

    The localizer only counts those answers, and gives the full region for them. Where a batch also has full regions
    that were answered, those in question are asked again, one by one.
    """

    def __init__(self, localizer: Localizer, batch_size: int) -> None:
        super().__init__(localizer, batch_size)
        self.malformed: set[str] = set()

    def __call__(
        self, images: sources.Images, questions: Sequence[str], samples: Sequence[Sample] | None = None
    ) -> list[Region]:
        assert samples is not None
        before = self.localizer.fallbacks
        regions = super().__call__(images, questions, samples)
        missed = self.localizer.fallbacks - before
        full = [i for i, region in enumerate(regions) if region == Region.full()] if missed else []
        if missed < len(full):
            full = [i for i in full if self._misses(images[i], questions[i])]
        self.malformed |= {samples[i].key for i in full}
        return regions

    def _misses(self, image: Image.Image, question: str) -> bool:
        before = self.localizer.fallbacks
        self.localizer.locate([image], [question])
        missed, self.localizer.fallbacks = self.localizer.fallbacks > before, before
        return missed
