"""Answers questions under one arm with a budget for each image, so that they may come in any portions.

A study knows all its questions and meets its budgets on average. Here each image keeps what the budget says, or what a
factor makes of its region: an answer depends on its own question alone.

Shapes: B rows of a batch, V visual tokens of one image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from torch import Tensor

from cropl.budget import apply_factor, kept_for_layer_average
from cropl.data.sample import Sample
from cropl.errors import UsageError
from cropl.evaluation.answer import pruning, visual_per_layer
from cropl.evaluation.arm_run import Run
from cropl.evaluation.arms import Arm
from cropl.evaluation.plan import check_arms, make_plan, needed_sources
from cropl.grid import Region
from cropl.integrations.decoding import Decoding, generate
from cropl.models.region_sources import RegionSource
from cropl.models.text_only import text_inputs
from cropl.models.vlm import VLM
from cropl.pruning.request import keep_mask
from cropl.tiling import Tokens

if TYPE_CHECKING:
    from PIL import Image


@dataclass(frozen=True)
class Reply:
    """An answer, the tokens that it took, and the image's visual tokens that the last layer saw, of those there were.

    `prompt` counts text and what is left of the visual tokens, `made` the answer with its end.
    """

    text: str
    prompt: int
    made: int
    kept: int = 0
    total: int = 0


class ArmAnswerer:
    """Answers under one arm.

    Args:
        vlm: the model.
        arm: what prunes. A budget is each image's own.
        source: tells regions; None for arms without.
        factor: what regions are scaled by, where the arm has no budget.
        batch_size: questions of a forward.

    Raises:
        UsageError: from a call: the arm does not fit the model or its images, or the model has no use for them.
    """

    def __init__(
        self, vlm: VLM, arm: Arm, source: RegionSource | None, factor: float | None = None, batch_size: int = 1
    ) -> None:
        self.vlm, self.arm, self.source, self.factor, self.batch_size = vlm, arm, source, factor, batch_size
        # Where regions decide what stays, a plan would meet the budget over all of them.
        self._by_region = arm.region_source != "none" and not Run(arm, None, None).meets_budget
        self._planned = replace(arm, budget=None) if self._by_region else arm
        # The method's own knob is then one number for all rows, derived from how many tokens an image has.
        self._alike = arm.budget is not None and not self._by_region
        self._checked = False

    def __call__(self, samples: Sequence[Sample], decoding: Decoding) -> list[Reply]:
        """Replies in the order of the questions; those without an image are answered by the model as it is."""
        replies: dict[int, Reply] = {}
        groups: dict[int, list[int]] = {}
        pictured = [index for index, sample in enumerate(samples) if sample.image is not None]
        grids = self._grids([samples[index] for index in pictured])
        for index, grid in zip(pictured, grids, strict=True):
            groups.setdefault(grid.num_tokens if self._alike else 0, []).append(index)
        if grids and not self._checked:
            check_arms([self.arm], {None: self.vlm}, grids)
            self._checked = True
        for group in groups.values():
            replies |= zip(group, self._with_images([samples[index] for index in group], decoding), strict=True)
        rest = sorted(set(range(len(samples))) - set(pictured), key=lambda index: len(samples[index].asked))
        for start in range(0, len(rest), self.batch_size):
            batch = rest[start : start + self.batch_size]
            replies |= zip(batch, self._without([samples[index] for index in batch], decoding), strict=True)
        return [replies[index] for index in range(len(samples))]

    def _grids(self, samples: Sequence[Sample]) -> Sequence[Tokens]:
        return self.vlm.token_maps([(sample.width, sample.height) for sample in samples]) if samples else []

    def _with_images(self, samples: Sequence[Sample], decoding: Decoding) -> list[Reply]:
        images, grids = [sample.picture() for sample in samples], self._grids(samples)
        run = self._plan(samples, images, grids)
        order = sorted(range(len(samples)), key=lambda index: (-run.kept[index], len(samples[index].asked), index))
        replies: dict[int, Reply] = {}
        for start in range(0, len(order), self.batch_size):
            batch = order[start : start + self.batch_size]
            made = self._batch(run, samples, [images[index] for index in batch], batch, decoding)
            replies |= zip(batch, made, strict=True)
        return [replies[index] for index in range(len(samples))]

    def _batch(
        self, run: Run, samples: Sequence[Sample], images: list[Image.Image], batch: list[int], decoding: Decoding
    ) -> list[Reply]:
        vlm = self.vlm
        inputs = vlm.inputs(images, [samples[index].asked for index in batch])
        with pruning(vlm, run, samples, batch, inputs.grids) as patch:
            made = generate(vlm, inputs, decoding)
        lengths = inputs.tensors["attention_mask"].sum(1).tolist()
        beams = dict(decoding.options).get("num_beams", 1)
        kept = [visual_per_layer(vlm, inputs, patch, row * beams if patch else row)[-1] for row in range(len(batch))]
        return [
            Reply(text, length - grid.num_tokens + left, count, left, grid.num_tokens)
            for (text, count), length, left, grid in zip(made, lengths, kept, inputs.grids, strict=True)
        ]

    def _without(self, samples: Sequence[Sample], decoding: Decoding) -> list[Reply]:
        inputs = text_inputs(self.vlm, [sample.asked for sample in samples])
        lengths = inputs.tensors["attention_mask"].sum(1).tolist()
        return [
            Reply(text, length, count)
            for (text, count), length in zip(generate(self.vlm, inputs, decoding), lengths, strict=True)
        ]

    def _plan(self, samples: Sequence[Sample], images: Sequence[Image.Image], grids: Sequence[Tokens]) -> Run:
        regions: dict[tuple[str, int | None], Sequence[Region]] = {}
        if self.source is not None:
            found = self.source(images, [sample.question for sample in samples], samples)
            regions = dict.fromkeys(needed_sources([self.arm]), found)
        keys = [sample.key for sample in samples]
        (run,) = make_plan([self._planned], {None: self.vlm.num_layers}, keys, grids, regions)
        if run.infeasible is not None:
            raise UsageError(f"{self.arm.key}: {run.infeasible}")
        if run.keep is not None and run.regions is not None and self._by_region:
            run.keep = [self._keep(region, grid, run) for region, grid in zip(run.regions, grids, strict=True)]
            run.kept = [int(mask.sum()) for mask in run.keep]
        return run

    def _keep(self, region: Region, grid: Tokens, run: Run) -> Tensor:
        """Bool (V,): the tokens of one image that stay."""
        if self.factor is not None:
            return apply_factor(region, grid, self.factor)
        budget = self.arm.budget
        if budget is None or self.arm.budget_meaning == "post_prune" or run.layer == run.num_layers:
            return keep_mask(region, grid, budget)
        assert run.layer is not None
        total = grid.num_tokens
        tokens = budget * total if isinstance(budget, float) else budget
        return keep_mask(region, grid, max(1, round(kept_for_layer_average(tokens, total, run.layer, run.num_layers))))
