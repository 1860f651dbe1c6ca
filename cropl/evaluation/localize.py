"""Asks every region source once per question, before anything is answered; scores the localizer against the truth.

The truth is where the evidence boxes are: questions without boxes have none, and count in no score of regions.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cropl.errors import UsageError
from cropl.evaluation.arms import Arm
from cropl.evaluation.pictures import by_image, displayed
from cropl.evaluation.plan import collect_regions, needed_sources
from cropl.evaluation.progress import Stages
from cropl.evaluation.study import Study
from cropl.grid import GRID, Region
from cropl.metrics.area import AreaRecall
from cropl.models import region_sources as sources
from cropl.models.vlm import VLM

if TYPE_CHECKING:
    from PIL import Image

    from cropl.data.sample import Sample
    from cropl.models.localizer import Localizer

_log = logging.getLogger(__name__)

RECALL = ("mean_recall", "recall_gt_0.5", "recall_gt_0.7", "recall_gt_0.9", "n")


@dataclass
class Localized:
    """Regions of every (source, seed), in the order of the samples, and how good the predicted ones are.

    Attributes:
        predicted: the localizer's regions; None where no localizer ran.
        recall: `mean_recall`, `recall_gt_0.5`, `recall_gt_0.7`, `recall_gt_0.9` and `n`, over the questions with boxes;
            None where no localizer ran, or none has boxes.
        details: its `region_share` (mean area as a share of the image) and `fallbacks` (answers that were no region
            and became the full one) over all questions; over those with boxes `mean_precision` and `mean_iou` (None
            without any) and `by_kind` (all scores per kind of question). None where no localizer ran.
        without_boxes: how many questions have no boxes, and so no true region.
        seconds: that the localizer took; None where none ran.
    """

    regions: dict[tuple[str, int | None], list[Region]] = field(default_factory=dict)
    predicted: list[Region] | None = None
    recall: dict[str, float] | None = None
    details: dict[str, Any] | None = None
    without_boxes: int = 0
    seconds: float | None = None


def localize(
    study: Study, samples: Sequence[Sample], localizer: Localizer | None, grounding: VLM | None, stages: Stages
) -> Localized:
    """All regions that the study's arms need; the localizer runs wherever there is one, as its recall is a result.

    Raises:
        UsageError: a source without what it needs.
    """
    without = _count_without_boxes(study.arms, samples)
    needed = needed_sources(study.arms)
    if localizer is not None and ("predicted", None) not in needed:
        needed.append(("predicted", None))
    predicted = None if localizer is None else Flagged(localizer, study.batch_size)
    built = _build(study, needed, predicted, grounding)
    found = Localized({pair: [Region.full()] * len(samples) for pair in built}, without_boxes=without)
    if not built:
        return found
    stages.stage("localizing", len(samples))
    for indices, images in _batches(samples, study.batch_size):
        for pair, regions in collect_regions(built, [samples[i] for i in indices], images).items():
            for i, region in zip(indices, regions, strict=True):
                found.regions[pair][i] = region
        stages.advance("", len(indices))
    if predicted is not None:
        found.seconds = predicted.seconds
        found.predicted = found.regions["predicted", None]
        malformed = [sample.key in predicted.malformed for sample in samples]
        scores = recall(found.predicted, samples, malformed)
        found.recall = None if scores is None else {name: scores[name] for name in RECALL}
        kinds = sorted({sample.kind for sample in samples if sample.boxes})
        found.details = {
            "region_share": sum(region.area for region in found.predicted) / (GRID * GRID * len(samples)),
            **{name: None if scores is None else scores[name] for name in ("mean_precision", "mean_iou")},
            "fallbacks": sum(malformed),
            "by_kind": {kind: recall(found.predicted, samples, malformed, kind) for kind in kinds},
        }
    return found


def needs_boxes(arm: Arm) -> bool:
    """Whether what an arm does depends on the evidence boxes; without them it would mean the whole image, or none."""
    return arm.region_source == "gt" or arm.control in ("evidence_masked", "evidence_only")


def _count_without_boxes(arms: Sequence[Arm], samples: Sequence[Sample]) -> int:
    """Samples without boxes; UsageError where an arm needs them and there are none at all."""
    without = sum(not sample.boxes for sample in samples)
    asking = [arm for arm in arms if needs_boxes(arm)]
    if asking and without == len(samples):
        raise UsageError(
            f"study arm {asking[0].key!r}: needs evidence boxes, and none of the {without} samples has any: leave out "
            "region_source gt and the controls evidence_masked and evidence_only, or use data with boxes"
        )
    if asking and without:
        _log.warning(
            "%d of %d samples have no evidence boxes: %s take the whole image for their true region",
            without, len(samples), ", ".join(arm.key for arm in asking),
        )  # fmt: skip
    return without


class Flagged(sources.Predicted):
    """A localizer's predictions; `malformed` holds the keys of the samples whose answer was no region, `seconds` the
    time that it took.

    The localizer only counts those answers, and gives the full region for them. Where a batch also has full regions
    that were answered, those in question are asked again, one by one.
    """

    def __init__(self, localizer: Localizer, batch_size: int) -> None:
        super().__init__(localizer, batch_size)
        self.malformed: set[str] = set()
        self.seconds = 0.0

    def __call__(
        self, images: sources.Images, questions: Sequence[str], samples: Sequence[Sample] | None = None
    ) -> list[Region]:
        assert samples is not None
        began = time.perf_counter()
        before = self.localizer.fallbacks
        regions = super().__call__(images, questions, samples)
        missed = self.localizer.fallbacks - before
        full = [i for i, region in enumerate(regions) if region == Region.full()] if missed else []
        if missed < len(full):
            full = [i for i in full if self._misses(images[i], questions[i])]
        self.malformed |= {samples[i].key for i in full}
        self.seconds += time.perf_counter() - began
        return regions

    def _misses(self, image: Image.Image, question: str) -> bool:
        before = self.localizer.fallbacks
        self.localizer.locate([image], [question])
        missed, self.localizer.fallbacks = self.localizer.fallbacks > before, before
        return missed


def _batches(samples: Sequence[Sample], batch_size: int) -> Iterator[tuple[list[int], list[Image.Image]]]:
    """Questions and their images, `batch_size` at a time or a few more: an image is opened once for its questions."""
    indices: list[int] = []
    images: list[Image.Image] = []
    for group in by_image(samples):
        image = displayed(samples[group[0]])
        indices += group
        images += [image] * len(group)
        if len(indices) >= batch_size:
            yield indices, images
            indices, images = [], []
    if indices:
        yield indices, images


def recall(
    predicted: Sequence[Region], samples: Sequence[Sample], malformed: Sequence[bool], kind: str | None = None
) -> dict[str, float] | None:
    """Area recall of predicted regions against the samples' own (paper, Table 9), over the samples that have boxes.

    `malformed` marks regions that stand in for an answer that was none; `kind` takes the questions of that kind alone.
    None where no sample is left.
    """
    counted = [bool(sample.boxes) and kind in (None, sample.kind) for sample in samples]
    if not any(counted):
        return None
    metric = AreaRecall()
    metric.update(predicted, [sample.region for sample in samples], counted, malformed)
    return {key: int(value) if key == "n" else float(value) for key, value in metric.compute().items()}


def _build(
    study: Study,
    needed: Sequence[tuple[str, int | None]],
    predicted: sources.RegionSource | None,
    grounding: VLM | None,
) -> Mapping[tuple[str, int | None], sources.RegionSource]:
    """One source per (name, seed). Centre and random regions have the size of the best source that there is."""
    base: dict[str, sources.RegionSource] = {"gt": sources.GroundTruth()}
    if predicted is not None:
        base["predicted"] = sources.Remembered(predicted)
    if study.regions is not None:
        base["file"] = sources.FromFile(study.regions)
    if grounding is not None:
        base["zero_shot"] = sources.Remembered(sources.ZeroShotGrounding(grounding, study.batch_size))
    sized = next((base[name] for name in ("predicted", "file", "zero_shot") if name in base), None)
    built: dict[tuple[str, int | None], sources.RegionSource] = {}
    for name, seed in needed:
        if name in base:
            built[name, seed] = base[name]
        elif sized is None or name not in ("center", "random"):
            raise UsageError(f"region source {name!r} needs a localizer, a regions file or a grounding model")
        else:
            built[name, seed] = sources.Center(sized) if name == "center" else sources.Random(sized, seed or 0)
    return built
