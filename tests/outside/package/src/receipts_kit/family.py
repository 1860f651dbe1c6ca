"""A model family: a config and a model type of its own, which neither `transformers` nor cropl knows."""

from __future__ import annotations

from transformers import AutoConfig, LlavaConfig, LlavaForConditionalGeneration

from cropl.models.llava import LlavaVLM


class ReceiptConfig(LlavaConfig):
    """A LLaVA's, under another name."""

    model_type = "receipt_llava"


class ReceiptModel(LlavaForConditionalGeneration):
    """A LLaVA that reads receipts."""

    config_class = ReceiptConfig


AutoConfig.register(ReceiptConfig.model_type, ReceiptConfig)


class ReceiptVLM(LlavaVLM):
    """Wraps `ReceiptModel`; the rest is LLaVA's."""

    model_class = ReceiptModel
