"""Qwen2.5-VL (`Qwen2_5_VLForConditionalGeneration`): as Qwen2-VL, with a tower whose layers mostly look at windows.

Processor, template, merged tokens and their positions are Qwen2-VL's. The tower sorts patches by window and sorts its
tokens back, so windows are its own business.
"""

from __future__ import annotations

from typing import ClassVar

from transformers import PreTrainedModel, Qwen2_5_VLForConditionalGeneration

from cropl.models.qwen2_vl import Qwen2VLVLM


class Qwen2_5_VLVLM(Qwen2VLVLM):
    """Qwen2.5-VL."""

    model_class: ClassVar[type[PreTrainedModel]] = Qwen2_5_VLForConditionalGeneration
