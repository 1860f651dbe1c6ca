"""The localizer: a small VLM that reads (image, question) and writes the contextual region as four coordinates."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import LogitsProcessor, LogitsProcessorList

from cropl.grid import GRID, Region
from cropl.models.qwen2_vl import DEFAULT_MAX_PIXELS, Qwen2VLVLM
from cropl.models.vlm import VLM
from cropl.prompt import RegionCodec, localizer_prompt

# B rows, S length, W vocabulary, G coordinates of an axis

COVERAGE_KEY = "region_coverage"
"""In a checkpoint's config: how its regions are to be decoded."""


class Localizer:
    """Locates the region that a question is about (paper, 3.2).

    Args:
        vlm: the fine-tuned model; with the ``tokens`` codec its tokenizer knows the 16 coordinate tokens.
        codec: how a region is written.
        coverage: 0 takes the most probable coordinates, as the paper does. Otherwise the probability, side by side,
            that a region does not cut off its truth (see :func:`coordinates`); above one half, the higher, the larger
            regions are and the less they miss. None takes the checkpoint's own (``region_coverage`` in its config),
            else 0.

    Raises:
        ValueError: the tokenizer lacks the codec's tokens; the coverage is no probability below 1, or the codec has no
            coordinate tokens and is decoded freely.

    ``fallbacks`` counts the answers that were no region (free decoding only); those become the full region.
    """

    def __init__(self, vlm: VLM, codec: RegionCodec | None = None, coverage: float | None = None) -> None:
        self.vlm, self.codec = vlm, codec or RegionCodec()
        if coverage is None:
            coverage = stored_coverage(vlm.model.config)
        self.coverage = check_coverage(coverage, self.codec)
        self.fallbacks = 0
        tokenizer = vlm.processor.tokenizer
        self._ids = tokenizer.convert_tokens_to_ids(list(self.codec.added_tokens))
        if any(i is None or i == tokenizer.unk_token_id for i in self._ids):
            raise ValueError(
                "the model's tokenizer has no coordinate tokens <x_0> ... <y_7>: it is no trained localizer "
                "(train one with `cropl fit -c testbed/localizer`, or use the codec 'digits')"
            )

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        codec: RegionCodec | None = None,
        max_pixels: int = DEFAULT_MAX_PIXELS,
        coverage: float | None = None,
        **options: Any,
    ) -> Localizer:
        """Load a localizer's checkpoint folder or hub name; options as for `VLM.from_pretrained`."""
        return cls(Qwen2VLVLM.from_pretrained(name_or_path, max_pixels=max_pixels, **options), codec, coverage)

    @torch.inference_mode()
    def locate(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[Region]:
        """One region per (image, question); with coordinate tokens decoding is constrained, so that each is valid."""
        if not images:
            return []
        inputs = self.vlm.inputs(images, [localizer_prompt(question) for question in questions])
        start = inputs.tensors["input_ids"].shape[1]
        options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 12}
        if self._ids:
            constraint = _Coordinates(self._ids, start, self.coverage)
            options = {"do_sample": False, "max_new_tokens": 4, "logits_processor": LogitsProcessorList([constraint])}
        ids_BS = self.vlm.model.generate(**inputs.kwargs(), **options)[:, start:]
        texts = self.vlm.processor.batch_decode(ids_BS, skip_special_tokens=not self._ids)
        return [self._read(text) for text in texts]

    def _read(self, text: str) -> Region:
        region = self.codec.decode(text)
        if region is None:
            self.fallbacks += 1
            return Region.full()
        return region


def stored_coverage(config: Any) -> float:
    """The coverage that a checkpoint's config asks for; 0 where it says nothing."""
    return getattr(config, COVERAGE_KEY, None) or 0.0


def check_coverage(coverage: float, codec: RegionCodec) -> float:
    """The coverage, if it is a probability below 1 that ``codec`` can be decoded with.

    Raises:
        ValueError: it is not.
    """
    if isinstance(coverage, bool) or not isinstance(coverage, int | float) or not 0 <= coverage < 1:
        raise ValueError(
            f"coverage ({COVERAGE_KEY} in a localizer's config.json) is {coverage!r}: "
            "give a probability from 0 (the most probable region) to below 1"
        )
    if coverage and not codec.added_tokens:
        raise ValueError(
            f"coverage {coverage}: only coordinate tokens have it; give coverage 0 with the codec 'digits'"
        )
    return float(coverage)


def coordinates(scores_BG: Tensor, step: int, coverage: float = 0.0) -> Tensor:
    """The coordinate (B,) of one step of decoding: x_min, y_min, x_max or y_max, where ``step`` is 0 to 3.

    Args:
        scores_BG: logits of the coordinates 0..7, -inf where one is not allowed.
        step: which side.
        coverage: 0 takes the most probable coordinate. Otherwise a side is put as far in as the model allows while the
            probability that the true side does not lie beyond it is at least ``coverage``.
    """
    if not coverage:
        return scores_BG.argmax(1)
    p_BG = scores_BG.double().softmax(1)
    if step < 2:  # the innermost minimum: the probability of lesser ones stays within 1 - coverage
        return GRID - 1 - _count_short(p_BG.flip(1), coverage)
    return _count_short(p_BG, coverage)


def _count_short(p_BG: Tensor, coverage: float) -> Tensor:
    """How many coordinates (B,), taken in order, together stay below ``coverage``; at most all but one."""
    return (p_BG.cumsum(1) < coverage).sum(1).clamp(max=GRID - 1)


class _Coordinates(LogitsProcessor):
    """Allows one coordinate a step: x_min, y_min, x_max >= x_min, y_max >= y_min, in this order, and nothing else."""

    def __init__(self, ids: Sequence[int], prompt_length: int, coverage: float = 0.0) -> None:
        self.ids, self.start, self.coverage = torch.as_tensor(ids).reshape(2, GRID), prompt_length, coverage

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.start
        ids_G = self.ids[step % 2].to(scores.device)
        scores_BG = scores[:, ids_G]
        if step >= 2:
            least_B1 = (input_ids[:, self.start + step - 2, None] == ids_G).int().argmax(1, keepdim=True)
            lower_BG = torch.arange(GRID, device=scores.device) < least_B1
            scores_BG = scores_BG.masked_fill(lower_BG, float("-inf"))
        chosen_B1 = ids_G[coordinates(scores_BG, step, self.coverage)][:, None]
        return torch.full_like(scores, float("-inf")).scatter(1, chosen_B1, 0.0)
