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

# B rows, S length, W vocabulary


class Localizer:
    """Locates the region that a question is about (paper, 3.2).

    Args:
        vlm: the fine-tuned model; with the ``tokens`` codec its tokenizer knows the 16 coordinate tokens.
        codec: how a region is written.

    Raises:
        ValueError: the tokenizer lacks the codec's tokens.

    ``fallbacks`` counts the answers that were no region (free decoding only); those become the full region.
    """

    def __init__(self, vlm: VLM, codec: RegionCodec | None = None) -> None:
        self.vlm, self.codec = vlm, codec or RegionCodec()
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
        cls, name_or_path: str, codec: RegionCodec | None = None, max_pixels: int = DEFAULT_MAX_PIXELS, **options: Any
    ) -> Localizer:
        """Load a localizer's checkpoint folder or hub name; options as for `VLM.from_pretrained`."""
        return cls(Qwen2VLVLM.from_pretrained(name_or_path, max_pixels=max_pixels, **options), codec)

    @torch.inference_mode()
    def locate(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[Region]:
        """One region per (image, question); with coordinate tokens decoding is constrained, so that each is valid."""
        if not images:
            return []
        inputs = self.vlm.inputs(images, [localizer_prompt(question) for question in questions])
        start = inputs.tensors["input_ids"].shape[1]
        options: dict[str, Any] = {"do_sample": False, "max_new_tokens": 12}
        if self._ids:
            constraint = _Coordinates(self._ids, start)
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


class _Coordinates(LogitsProcessor):
    """Allows x_min, y_min, x_max >= x_min, y_max >= y_min, in this order, and nothing else."""

    def __init__(self, ids: Sequence[int], prompt_length: int) -> None:
        self.ids, self.start = torch.as_tensor(ids).reshape(2, GRID), prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        step = input_ids.shape[1] - self.start
        ids_G = self.ids[step % 2].to(scores.device)
        allowed_BG = torch.ones(len(scores), GRID, dtype=torch.bool, device=scores.device)
        if step >= 2:
            least_B1 = (input_ids[:, self.start + step - 2, None] == ids_G).int().argmax(1, keepdim=True)
            allowed_BG = torch.arange(GRID, device=scores.device) >= least_B1
        constrained_BW = torch.full_like(scores, float("-inf"))
        constrained_BW[:, ids_G] = scores[:, ids_G].masked_fill(~allowed_BG, float("-inf"))
        return constrained_BW
