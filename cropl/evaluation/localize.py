"""Asks every region source once per question, before anything is answered; scores the localizer against the truth."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cropl.errors import UsageError
from cropl.evaluation.pictures import by_image, displayed
from cropl.evaluation.plan import collect_regions, needed_sources
from cropl.evaluation.progress import Stages
from cropl.evaluation.study import Study
from cropl.grid import Region
from cropl.metrics.area import AreaRecall
from cropl.models import region_sources as sources
from cropl.models.vlm import VLM

if TYPE_CHECKING:
    from PIL import Image

    from cropl.data.sample import Sample
    from cropl.models.localizer import Localizer

RECALL = ("mean_recall", "recall_gt_0.5", "recall_gt_0.7", "recall_gt_0.9", "n")


@dataclass
class Localized:
    """Regions of every (source, seed), in the order of the samples, and how good the predicted ones are.

    Attributes:
        predicted: the localizer's regions; None where no localizer ran.
        recall: `mean_recall`, `recall_gt_0.5`, `recall_gt_0.7`, `recall_gt_0.9`, `n`; None where no localizer ran.
        details: its `region_share` (mean area as a share of the image), `mean_precision`, `mean_iou`, `fallbacks`
            (answers that were no region and became the full one) and `by_kind` (all scores per kind of question).
        seconds: of localization.
    """

    regions: dict[tuple[str, int | None], list[Region]] = field(default_factory=dict)
    predicted: list[Region] | None = None
    recall: dict[str, float] | None = None
    details: dict[str, Any] | None = None
    seconds: float = 0.0


def localize(
    study: Study, samples: Sequence[Sample], localizer: Localizer | None, grounding: VLM | None, stages: Stages
) -> Localized:
    """All regions that the study's arms need; the localizer runs wherever there is one, as its recall is a result."""
    needed = needed_sources(study.arms)
    if localizer is not None and ("predicted", None) not in needed:
        needed.append(("predicted", None))
    built = _build(study, needed, localizer, grounding)
    found = Localized({pair: [Region.full()] * len(samples) for pair in built})
    if not built:
        return found
    stages.stage("localizing", len(samples))
    began = time.perf_counter()
    for indices, images in _batches(samples, study.batch_size):
        for pair, regions in collect_regions(built, [samples[i] for i in indices], images).items():
            for i, region in zip(indices, regions, strict=True):
                found.regions[pair][i] = region
        stages.advance("", len(indices))
    found.seconds = time.perf_counter() - began
    if localizer is not None:
        found.predicted = found.regions["predicted", None]
        scores = recall(found.predicted, samples)
        found.recall = {name: scores[name] for name in RECALL}
        by_kind = {}
        for kind in sorted({sample.kind for sample in samples}):
            mine = [i for i, sample in enumerate(samples) if sample.kind == kind]
            by_kind[kind] = recall([found.predicted[i] for i in mine], [samples[i] for i in mine])
        found.details = {
            **{name: scores[name] for name in ("region_share", "mean_precision", "mean_iou")},
            "fallbacks": localizer.fallbacks,
            "by_kind": by_kind,
        }
    return found


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


def recall(predicted: Sequence[Region], samples: Sequence[Sample]) -> dict[str, float]:
    """Area recall of predicted regions against the samples' own (paper, Table 9)."""
    metric = AreaRecall()
    metric.update(list(predicted), [sample.region for sample in samples])
    return {key: int(value) if key == "n" else float(value) for key, value in metric.compute().items()}


def _build(
    study: Study, needed: Sequence[tuple[str, int | None]], localizer: Localizer | None, grounding: VLM | None
) -> Mapping[tuple[str, int | None], sources.RegionSource]:
    """One source per (name, seed). Centre and random regions have the size of the best source that there is."""
    base: dict[str, sources.RegionSource] = {"gt": sources.GroundTruth()}
    if localizer is not None:
        base["predicted"] = sources.Remembered(sources.Predicted(localizer, study.batch_size))
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
