"""The regions that a study needs, once for every question, before anything is answered; the localizer's are scored.

The truth is where the evidence boxes are: questions without boxes have none, and count in no score of regions.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cropl.errors import UsageError
from cropl.evaluation.arms import Arm
from cropl.evaluation.journal import Finds
from cropl.evaluation.locating import Located, locate, models_asked
from cropl.evaluation.part import Part
from cropl.evaluation.plan import needed_sources
from cropl.evaluation.progress import Stages
from cropl.evaluation.study import Study
from cropl.grid import GRID, Region
from cropl.metrics.area import AreaRecall
from cropl.models import region_sources as sources
from cropl.models.vlm import VLM

if TYPE_CHECKING:
    from cropl.data.sample import Sample
    from cropl.models.localizer import Localizer

_log = logging.getLogger(__name__)

RECALL = ("mean_recall", "recall_gt_0.5", "recall_gt_0.7", "recall_gt_0.9", "n")


@dataclass
class Regions:
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
    study: Study,
    samples: Sequence[Sample],
    localizer: Localizer | None,
    grounding: VLM | None,
    stages: Stages,
    finds: Finds,
    part: Part = Part(),  # noqa: B008
) -> Regions:
    """All regions that the study's arms need; the localizer runs wherever there is one, as its recall is a result.

    Args:
        study, samples, stages: as for `run_study`.
        localizer, grounding: what they are, where there are any.
        finds: what was located before, and where more of it goes.
        part: which share of the questions this process asks them; the other parts' finds are waited for.

    Raises:
        UsageError: a source without what it needs.
    """
    without = check_sources(study, samples, warn=True)
    needed = needed_sources(study.arms)
    if localizer is not None and ("predicted", None) not in needed:
        needed.append(("predicted", None))
    asked = models_asked(study, localizer, grounding)
    _check(study, needed, asked)
    base: dict[str, sources.RegionSource] = {"gt": sources.GroundTruth()}
    if study.regions is not None:
        base["file"] = sources.FromFile(study.regions)
    located = locate(asked, samples, study.batch_size, finds, part, stages)
    base |= {name: sources.Known({key: one.region for key, one in known.items()}) for name, known in located.items()}
    found = Regions(without_boxes=without)
    questions = [sample.question for sample in samples]
    sized = next((base[name] for name in SIZED if name in base), None)
    for name, seed in needed:
        source = base.get(name)
        if source is None:
            assert sized is not None
            source = sources.Center(sized) if name == "center" else sources.Random(sized, seed or 0)
        found.regions[name, seed] = source([], questions, samples)
    if "predicted" in located:
        _score(found, samples, located["predicted"])
    return found


SIZED = ("predicted", "file", "zero_shot")
"""Where centre and random regions take their sizes from: the first of these that there is."""


def _check(study: Study, needed: Sequence[tuple[str, int | None]], asked: Mapping[str, Any]) -> None:
    """UsageError unless every source has what it needs."""
    there = {"gt", *asked, *(["file"] if study.regions is not None else [])}
    for name, _ in needed:
        if name not in there and not (name in ("center", "random") and there & set(SIZED)):
            raise UsageError(f"region source {name!r} needs a localizer, a regions file or a grounding model")


def _score(found: Regions, samples: Sequence[Sample], predicted: Mapping[str, Located]) -> None:
    mine = [predicted[sample.key] for sample in samples]
    found.seconds = sum(one.seconds for one in mine)
    found.predicted = [one.region for one in mine]
    malformed = [one.malformed for one in mine]
    scores = recall(found.predicted, samples, malformed)
    found.recall = None if scores is None else {name: scores[name] for name in RECALL}
    kinds = sorted({sample.kind for sample in samples if sample.boxes})
    found.details = {
        "region_share": sum(region.area for region in found.predicted) / (GRID * GRID * len(samples)),
        **{name: None if scores is None else scores[name] for name in ("mean_precision", "mean_iou")},
        "fallbacks": sum(malformed),
        "by_kind": {kind: recall(found.predicted, samples, malformed, kind) for kind in kinds},
    }


def needs_boxes(arm: Arm) -> bool:
    """Whether what an arm does depends on the evidence boxes; without them it would mean the whole image, or none."""
    return arm.region_source == "gt" or arm.control in ("evidence_masked", "evidence_only")


def check_sources(study: Study, samples: Sequence[Sample], warn: bool = False) -> int:
    """How many samples have no boxes; `warn` of some where an arm needs them.

    Raises:
        UsageError: an arm needs boxes and there are none at all.
        ValueError: the study's file of regions cannot be read, or has none for a question.
    """
    if study.regions is not None and any(arm.region_source == "file" for arm in study.arms):
        sources.FromFile(study.regions)([], [sample.question for sample in samples], samples)
    without = sum(not sample.boxes for sample in samples)
    asking = [arm for arm in study.arms if needs_boxes(arm)]
    if asking and without == len(samples):
        raise UsageError(
            f"study arm {asking[0].key!r}: needs evidence boxes, and none of the {without} samples has any: leave out "
            "region_source gt and the controls evidence_masked and evidence_only, or use data with boxes"
        )
    if asking and without and warn:
        _log.warning(
            "%d of %d samples have no evidence boxes: %s take the whole image for their true region",
            without, len(samples), ", ".join(arm.key for arm in asking),
        )  # fmt: skip
    return without


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
