"""Questions without an image, as half of ScienceQA's are: the same template, and nothing where the image would be."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

from cropl.models.inputs import VLMInputs
from cropl.models.text import left_padded
from cropl.models.vlm import VLM


def text_inputs(vlm: VLM, questions: Sequence[str]) -> VLMInputs:
    """Left-padded model inputs of questions alone, on the model's device; there are no grids.

    Raises:
        NotImplementedError: the family does not say how it writes a conversation without an image.
        ValueError: a question is empty, or there are none.
    """
    if not questions:
        raise ValueError("no questions: give at least one")
    rendered = [vlm.render([(question, "")], image=False) for question in questions]
    prompts = [one.text[: one.answers[0][0]] for one in rendered]
    tensors: dict[str, Any] = left_padded(vlm.tokenizer, prompts, vlm.adds_bos, vlm.device)
    if "mm_token_type_ids" in inspect.signature(vlm.model.forward).parameters:
        tensors["mm_token_type_ids"] = vlm.visual_mask(tensors["input_ids"]).int()
    return VLMInputs(tensors, [])
