"""An untrained tiny Qwen2.5-VL: the testbed's words and sizes, a tower of windows of 2 x 2 merged tokens."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoTokenizer, Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from cropl.testbed.build import build_qwen2_vl


def build_qwen2_5_vl(folder: str | Path, layers: int = 2, width: int = 64) -> Path:
    """Write the checkpoint; `folder` also gets the files of the Qwen2-VL whose tokenizer and settings it takes."""
    folder = build_qwen2_vl(folder, layers=layers, width=width)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    images = Qwen2VLImageProcessorPil.from_pretrained(folder)
    ids = {mark: tokenizer.convert_tokens_to_ids(f"<|{mark}|>") for mark in ("image_pad", "video_pad", "vision_start")}
    half = width // 4 // 2
    rope = {"rope_type": "default", "rope_theta": 10000.0}
    rope |= {"mrope_section": [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]}
    text = {
        "vocab_size": len(tokenizer), "hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048, "rope_parameters": rope,
        "initializer_range": width**-0.5, "bos_token_id": None, "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {
        "depth": 4, "hidden_size": 48, "out_hidden_size": width, "intermediate_size": 96, "num_heads": 3,
        "patch_size": 12, "window_size": 48, "fullatt_block_indexes": [1, 3], "initializer_range": 0.1,
    }  # fmt: skip
    config = Qwen2_5_VLConfig(
        text_config=text, vision_config=vision, image_token_id=ids["image_pad"], video_token_id=ids["video_pad"],
        vision_start_token_id=ids["vision_start"], tie_word_embeddings=True,
    )  # fmt: skip
    torch.manual_seed(0)
    model = Qwen2_5_VLForConditionalGeneration(config)
    for part in (model, images, tokenizer):
        part.save_pretrained(folder)
    return folder
