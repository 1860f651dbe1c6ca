"""Tiny random LLaVA models and inputs for identity tests: everything that decides a result is drawn from a seed.

Shapes: B rows, S sequence, V visual tokens (64, an 8x8 grid).
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    MistralConfig,
    Qwen2Config,
)

from cropl.grid import Region

IMAGE, PAD, SIDE, VOCAB = 99, 0, 8, 100
SMALL, WIDE, FULL = Region(2, 3, 4, 4), Region(0, 1, 7, 2), Region.full()


def tiny_llava(
    layers: int = 4,
    kv_heads: int = 4,
    dtype: torch.dtype = torch.float64,
    seed: int = 0,
    attention: str = "sdpa",
    text: str = "llama",
    side: int = SIDE,
) -> Any:
    """A random LLaVA: 8x8 visual tokens, width 32, weights large enough that tokens matter to each other."""
    torch.manual_seed(seed)
    kinds: dict[str, Any] = {"llama": LlamaConfig, "mistral": MistralConfig, "qwen2": Qwen2Config}
    options: dict[str, Any] = {"mistral": {"sliding_window": None}}.get(text, {})
    text_config = kinds[text](
        vocab_size=VOCAB,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=512,
        initializer_range=0.3,
        pad_token_id=PAD,
        bos_token_id=1,
        eos_token_id=2,
        **options,
    )
    vision_config = CLIPVisionConfig(
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=4 * side,
        patch_size=4,
        initializer_range=0.3,
        attention_dropout=0.0,
    )
    config = LlavaConfig(
        vision_config=vision_config, text_config=text_config, image_token_index=IMAGE, vision_feature_layer=-2
    )
    config._attn_implementation = attention
    model = LlavaForConditionalGeneration(config).to(dtype).eval()
    model.generation_config.eos_token_id = None  # every run generates to its full length
    model.generation_config.pad_token_id = PAD
    return model


def prompt(text_length: int, before: int = 3, images: int = 1, seed: int = 0, visual: int = SIDE * SIDE) -> Tensor:
    """Input ids `(S,)` of one row: `before` text tokens, the image(s), `text_length` text tokens."""
    generator = torch.Generator().manual_seed(1000 + seed)
    ids = torch.randint(3, IMAGE, (before + text_length,), generator=generator)
    image = torch.full((images * visual,), IMAGE)
    return torch.cat([ids[:before], image, ids[before:]])


def pixels(rows: int, dtype: torch.dtype = torch.float64, seed: int = 0, side: int = SIDE) -> Tensor:
    """Random pixel values for `rows` images."""
    generator = torch.Generator().manual_seed(2000 + seed)
    return torch.randn(rows, 3, 4 * side, 4 * side, dtype=dtype, generator=generator)


def batch(prompts: list[Tensor], side: str = "left") -> dict[str, Tensor]:
    """Padded `input_ids` and `attention_mask` BS."""
    longest = max(map(len, prompts))
    ids_BS = torch.full((len(prompts), longest), PAD)
    mask_BS = torch.zeros(len(prompts), longest, dtype=torch.long)
    for row, ids in enumerate(prompts):
        where = slice(longest - len(ids), longest) if side == "left" else slice(0, len(ids))
        ids_BS[row, where], mask_BS[row, where] = ids, 1
    return {"input_ids": ids_BS, "attention_mask": mask_BS}
