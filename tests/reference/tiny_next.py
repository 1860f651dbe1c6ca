"""A tiny random LLaVA-NeXT and its processor: tiles of 8 x 8 tokens, the usual shapes of tiles."""

from __future__ import annotations

from typing import Any

import torch
from transformers import LlavaNextConfig, LlavaNextForConditionalGeneration, LlavaNextProcessor
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil

from tests.reference import tiny
from tests.reference.checkpoints import tiny_processor

TILE, PATCH = 32, 4
PINPOINTS = [[32, 64], [64, 32], [64, 64], [96, 32], [32, 96]]


def tiny_llava_next(
    layers: int = 4,
    kv_heads: int = 4,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    attention: str = "sdpa",
    text: str = "llama",
) -> Any:
    """The tower and decoder of `tiny.tiny_llava`, with LLaVA-NeXT's tiles."""
    like = tiny.tiny_llava(1, kv_heads, seed=seed, text=text).config
    like.text_config.num_hidden_layers = layers
    config = LlavaNextConfig(
        vision_config=like.vision_config,
        text_config=like.text_config,
        image_token_index=tiny.IMAGE,
        vision_feature_layer=-2,
        image_grid_pinpoints=PINPOINTS,
        image_seq_length=64,
    )
    config._attn_implementation = attention
    torch.manual_seed(seed)
    model = LlavaNextForConditionalGeneration(config).to(dtype).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = tiny.PAD
    return model


def next_images(**options: Any) -> LlavaNextImageProcessorPil:
    """The image processor of such a model."""
    return LlavaNextImageProcessorPil(
        size={"shortest_edge": TILE},
        crop_size={"height": TILE, "width": TILE},
        image_grid_pinpoints=PINPOINTS,
        **options,
    )


def next_processor(chat_template: str | None = None) -> Any:
    """The processor of such a model."""
    return LlavaNextProcessor(
        image_processor=next_images(),
        tokenizer=tiny_processor().tokenizer,
        patch_size=PATCH,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        chat_template=chat_template,
    )
