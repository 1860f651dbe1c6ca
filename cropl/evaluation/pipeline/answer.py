"""The second stage of the pipeline: answers questions whose regions are known, in batches of about equal length.

Shapes: V visual tokens of one image.
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from cropl.budget import apply_factor, check_factor
from cropl.evaluation.arms import check_budget
from cropl.evaluation.pipeline.items import Asked, Failed, Located, isolated
from cropl.grid import Region
from cropl.models.vlm import VLM
from cropl.pruning import ILP, Dense, InnerLLM, PreLLM, keep_mask, pruned
from cropl.pruning.checks import check_method, check_model
from cropl.pruning.select import scaled_layer
from cropl.tiling import Regions


@dataclass(frozen=True)
class Answered:
    """An answer, the visual tokens that the last layer saw, those there were, and its share of the time."""

    text: str
    kept: int
    total: int
    seconds: float = 0.0


@dataclass(frozen=True)
class _Row:
    place: int
    image: Image.Image
    question: str
    region: Regions | None


def takes_regions(method: InnerLLM | PreLLM) -> bool:
    """Whether a method keeps what regions say, and cannot do without any."""
    return method.needs_regions if isinstance(method, PreLLM) else method.needs_request


class AnswerStage:
    """Answers with one model and one method.

    Args:
        vlm: the model.
        method: an `InnerLLM` or `PreLLM`; None is ILP from near the paper's layer on, 2 of 32.
        budget: tokens that each image keeps exactly (int), or its share of them (float); None keeps the regions.
        factor: instead of a budget, what regions are scaled by: one that `calibrate` found on another set.
        batch_size: questions of a forward.
        max_new_tokens: of an answer.

    Raises:
        ValueError: the model cannot be pruned, the method does not fit it, or budget and factor do not go with it.
    """

    def __init__(
        self,
        vlm: VLM,
        method: InnerLLM | PreLLM | None = None,
        budget: int | float | None = None,
        factor: float | None = None,
        batch_size: int = 8,
        max_new_tokens: int = 32,
    ) -> None:
        self.method = method or ILP(layer=scaled_layer(2, vlm.num_layers))
        self.takes_regions = takes_regions(self.method)
        if not isinstance(self.method, Dense):
            check_model(vlm)
        check_method(self.method, vlm.num_layers, requested=self.takes_regions)
        if not self.takes_regions and (budget is not None or factor is not None):
            raise ValueError(
                f"{self.method.name} takes no regions, which a budget or factor is about: give the tokens to the method"
            )
        if budget is not None and factor is not None:
            raise ValueError("give either a budget or a factor, not both: both say how many tokens an image keeps")
        if isinstance(self.method, PreLLM) and (budget is not None or factor is not None):
            raise ValueError(
                f"{self.method.name} makes as many tokens as it was trained to: give no budget and no factor"
            )
        budget = budget.item() if isinstance(budget, np.generic) else budget
        if budget is not None:
            check_budget(budget, "answering")
        if factor is not None:
            check_factor(factor)
        self.vlm, self.budget, self.factor = vlm, budget, factor
        self.batch_size, self.max_new_tokens = batch_size, max_new_tokens
        self._grid = lru_cache(maxsize=256)(lambda size: vlm.token_maps([size])[0])

    def __call__(self, asked: Sequence[Asked], located: Sequence[Located]) -> list[Answered | Failed]:
        """Answers in the order of the questions. One that fails is asked again alone, and fails alone."""
        done: list[Answered | Failed] = [Failed(each.error or "") for each in asked]
        rows = []
        for place, (one, where) in enumerate(zip(asked, located, strict=True)):
            picture = one.picture()
            if isinstance(picture, Failed):
                done[place] = picture
            else:
                rows.append(_Row(place, picture, one.question, where.region))
        if len(rows) > self.batch_size:
            rows.sort(key=lambda row: (-self._kept(row), row.place))
        for start in range(0, len(rows), self.batch_size):
            batch = rows[start : start + self.batch_size]
            for row, answer in zip(batch, isolated(self._answer, batch)):
                done[row.place] = answer
        return done

    @torch.inference_mode()
    def _answer(self, rows: list[_Row]) -> list[Answered]:
        began = time.perf_counter()
        vlm, method = self.vlm, self.method
        inputs = vlm.inputs([row.image for row in rows], [row.question for row in rows])
        wish: dict[str, Any] = {}
        if not self.takes_regions:
            pass
        elif isinstance(method, PreLLM):
            wish = {"regions": [row.region or Region.full() for row in rows], "grids": inputs.grids}
        else:
            wish = {"keep": [self._keep(row.region, grid) for row, grid in zip(rows, inputs.grids)]}
        if isinstance(method, Dense):  # also of models that cannot be pruned
            texts = vlm.generate(inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
            left = [grid.num_tokens for grid in inputs.grids]
        else:
            with pruned(vlm, method, **wish) as patch:
                texts = vlm.generate(inputs, max_new_tokens=self.max_new_tokens, do_sample=False)
            assert patch.kept_B is not None
            left = patch.kept_B.tolist()
        seconds = (time.perf_counter() - began) / len(rows)
        return [Answered(text, kept, grid.num_tokens, seconds) for text, kept, grid in zip(texts, left, inputs.grids)]

    def _keep(self, region: Regions | None, grid: Any) -> Tensor:
        """Bool (V,): all where there is no region, whatever the budget."""
        if region is None:
            return torch.ones(grid.num_tokens, dtype=torch.bool)
        if self.factor is not None:
            return apply_factor(region, grid, self.factor)
        return keep_mask(region, grid, self.budget)

    def _kept(self, row: _Row) -> int:
        """Tokens that the row will keep, to sort by; 0 where that cannot be told: its own batch will say why."""
        try:
            return int(self._keep(row.region, self._grid(row.image.size)).sum())
        except Exception:
            return 0
