"""One answer of one method, and what it took: tokens, FLOPs, cache, time, and which tokens are left.

Shapes: B rows (one here), S positions, M surviving ones, V visual tokens of the image.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import StoppingCriteriaList

from cropl.data.sample import Sample
from cropl.evaluation.answer import pruning, visual_left, visual_per_layer
from cropl.evaluation.answers import Answered, Answers
from cropl.evaluation.arm_run import Run
from cropl.evaluation.costs import Costs, FixedCosts, measure_costs
from cropl.metrics.cost import kv_bytes
from cropl.models.inputs import VLMInputs
from cropl.models.tower_view import TowerImage
from cropl.models.vlm import VLM
from cropl.pruning import Patch
from cropl.pruning.base import PreLLM
from cropl.pruning.request import region_mask
from cropl.pruning.tower import TowerMethod
from cropl.tiling import Tokens


class Cancelled(Exception):
    """Nobody waits for the answer any more."""


@dataclass(frozen=True)
class Measured:
    """An answer.

    Attributes:
        text: what was answered.
        visual: visual tokens that entered each decoder layer.
        keep: bool (V,): those that the last layer sees; None where its tokens stand for none of the image's.
        costs: FLOPs and cache of the prefill.
        prefill_seconds: to the first token, with the image already encoded.
        seconds: of the whole answer.
    """

    text: str
    visual: tuple[int, ...]
    keep: list[bool] | None
    costs: Costs
    prefill_seconds: float
    seconds: float


@torch.inference_mode()
def measure(
    vlm: VLM,
    run: Run,
    sample: Sample,
    feature_VD: Tensor,
    fixed: FixedCosts,
    cancelled: Callable[[], bool],
    max_new_tokens: int,
) -> Measured:
    """Answer one question.

    Args:
        vlm: the model.
        run: planned for this question alone.
        sample: the question.
        feature_VD: its image, encoded.
        fixed: the costs that all runs share.
        cancelled: asked between steps, and for every new token.
        max_new_tokens: of the answer.

    Raises:
        Cancelled: nobody waits any more.
    """
    image = sample.picture()
    inputs = vlm.inputs([image], [sample.asked], [feature_VD])
    grid = inputs.grids[0]
    with pruning(vlm, run, [sample], [0], inputs.grids) as patch:
        if patch is not None and patch.looks_into_tower:  # no more timed than the other encoding
            inputs = vlm.inputs([image], [sample.asked], vlm.encode_images([image]))
        # Untimed, as the first forward of a shape pays for start-up.
        output = vlm.model(**inputs.kwargs(), use_cache=True, logits_to_keep=1)
        cache = kv_bytes(output.past_key_values)
        del output
        clock = _Clock(vlm, cancelled)
        text = vlm.generate(
            inputs, max_new_tokens=max_new_tokens, stopping_criteria=StoppingCriteriaList([clock.after_token])
        )[0]
        clock.check()
        seconds = clock.read()
        visual = visual_per_layer(vlm, inputs, patch, 0)
    words = int(inputs.tensors["attention_mask"].sum()) - grid.num_tokens
    positions = None if patch is None else patch.positions
    answers = Answers.of([run], 1)
    answers.take([Answered(run.key, 0, text, visual, words, seconds, positions, cache)])
    costs = measure_costs(vlm, [run], answers, fixed, [grid])[run.key]
    keep = _left(vlm, run, sample, inputs, patch)
    return Measured(text, visual, keep, costs, clock.first_token or seconds, seconds)


class _Clock:
    """Seconds since it was made; and after each token, whether anybody still waits."""

    def __init__(self, vlm: VLM, cancelled: Callable[[], bool]) -> None:
        self._vlm, self._cancelled = vlm, cancelled
        self.first_token: float | None = None
        self.check()
        self._began = 0.0
        self._began = self.read()

    def read(self) -> float:
        if self._vlm.device.type == "cuda":
            torch.cuda.synchronize(self._vlm.device)
        return time.perf_counter() - self._began

    def check(self) -> None:
        if self._cancelled():
            raise Cancelled

    def after_token(self, ids_BS: Tensor, scores: Any, **_: Any) -> Tensor:
        """A stopping criterion."""
        if self.first_token is None:
            self.first_token = self.read()
        return torch.full((len(ids_BS),), self._cancelled(), device=ids_BS.device)


def _left(vlm: VLM, run: Run, sample: Sample, inputs: VLMInputs, patch: Patch | None) -> list[bool] | None:
    """Which of the image's tokens the last layer sees; for PLC, which ones are its region's."""
    grid: Tokens = inputs.grids[0]
    method = run.method([sample.key])
    if isinstance(method, TowerMethod):
        return _places(vlm, method, sample, grid.num_tokens)
    if isinstance(method, PreLLM):
        return None if run.regions is None else region_mask(run.regions[0], grid).tolist()
    return visual_left(vlm, inputs, patch, 0) or [True] * grid.num_tokens


def _places(vlm: VLM, method: TowerMethod, sample: Sample, total: int) -> list[bool] | None:
    """What a method that looks into the tower chooses; None where some of its tokens are merged ones."""
    seen: list[TowerImage] = []
    watch = vlm.watch_tower(seen.append)
    try:
        vlm.encode_images([sample.picture()])
    finally:
        watch.remove()
    place_M = method.reduce_image(seen[0]).place_M
    if place_M is None:
        return None
    chosen = set(place_M.tolist())
    return [place in chosen for place in range(total)]
