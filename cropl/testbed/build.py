"""Untrained checkpoints of the testbed's models: ordinary ``transformers`` folders that ``from_pretrained`` loads.

The geometry is the real one where the paper depends on it: the tiny LLaVA has 24 x 24 visual tokens like LLaVA-1.5, the
tiny Qwen2-VL about 64 merged tokens whose grid follows the picture's shape. The rest is as narrow as still learns.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaNextConfig,
    LlavaNextForConditionalGeneration,
    LlavaNextProcessor,
    LlavaProcessor,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD
from transformers.models.llava.image_processing_pil_llava import LlavaImageProcessorPil
from transformers.models.llava_next.image_processing_pil_llava_next import LlavaNextImageProcessorPil
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from cropl.testbed import weights
from cropl.testbed.tokenizer import build_tokenizer

LLAVA_CHAT = (
    "{% for message in messages %}{{ message['role'].upper() + ': ' }}{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<image>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}"
    "{{ '</s>' if message['role'] == 'assistant' else ' ' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"
)
QWEN_CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<|vision_start|><|image_pad|><|vision_end|>"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def build_llava(folder: str | Path, layers: int = 6, width: int = 128, seed: int = 0) -> Path:
    """Write an untrained tiny LLaVA: CLIP tower (192 px, patch 8), projector, Llama decoder of ``layers`` layers."""
    special = {"unk_token": "<unk>", "bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = build_tokenizer(special, ["<image>"])
    vision = CLIPVisionConfig(
        hidden_size=96, intermediate_size=288, num_hidden_layers=3, num_attention_heads=3, image_size=192, patch_size=8
    )
    text = LlamaConfig(
        vocab_size=len(tokenizer), hidden_size=width, intermediate_size=3 * width, num_hidden_layers=layers,
        num_attention_heads=4, max_position_embeddings=2048, initializer_range=width**-0.5,
        bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id,
    )  # fmt: skip
    config = LlavaConfig(
        vision_config=vision, text_config=text, image_token_index=_id(tokenizer, "<image>"),
        image_seq_length=576, vision_feature_layer=-1, vision_feature_select_strategy="default",
    )  # fmt: skip
    with _seeded(seed):
        model = LlavaForConditionalGeneration(config)
    _lay_out_positions(model)
    image_processor = LlavaImageProcessorPil(
        do_pad=True, size={"shortest_edge": 192}, crop_size={"height": 192, "width": 192},
        image_mean=list(OPENAI_CLIP_MEAN), image_std=list(OPENAI_CLIP_STD),
    )  # fmt: skip
    processor = LlavaProcessor(
        image_processor=image_processor, tokenizer=tokenizer, patch_size=8, vision_feature_select_strategy="default",
        num_additional_image_tokens=1, chat_template=LLAVA_CHAT,
    )  # fmt: skip
    return _save(folder, model, processor)


def build_qwen2_vl(folder: str | Path, layers: int = 5, width: int = 128, seed: int = 0) -> Path:
    """Write an untrained tiny Qwen2-VL: patch 12, 2 x 2 merge, at most 192 x 192 pixels in area (about 64 tokens)."""
    special = {"unk_token": "<unk>", "eos_token": "<|im_end|>", "pad_token": "<|endoftext|>"}
    marks = ["<|im_start|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>"]
    tokenizer = build_tokenizer(special, marks)
    tokenizer.chat_template = QWEN_CHAT
    ids = {mark: _id(tokenizer, mark) for mark in marks}
    half = width // 4 // 2  # of a head: time, rows and columns share its frequencies
    sections = [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]
    rope = {"rope_type": "default", "rope_theta": 10000.0, "mrope_section": sections}
    text = {
        "vocab_size": len(tokenizer), "hidden_size": width, "intermediate_size": 3 * width, "num_hidden_layers": layers,
        "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
        "initializer_range": width**-0.5, "rope_parameters": rope, "bos_token_id": None,
        "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id,
    }  # fmt: skip
    vision = {
        "depth": 4, "embed_dim": 96, "hidden_size": width, "mlp_ratio": 3, "num_heads": 3, "patch_size": 12,
        "initializer_range": 0.1,
    }  # fmt: skip
    config = Qwen2VLConfig(
        text_config=text, vision_config=vision, image_token_id=ids["<|image_pad|>"],
        video_token_id=ids["<|video_pad|>"], vision_start_token_id=ids["<|vision_start|>"],
        vision_end_token_id=ids["<|vision_end|>"], tie_word_embeddings=True,
    )  # fmt: skip
    with _seeded(seed):
        model = Qwen2VLForConditionalGeneration(config)
    area = 192 * 192
    image_processor = Qwen2VLImageProcessorPil(
        patch_size=12, merge_size=2, size={"shortest_edge": area // 2, "longest_edge": area}
    )
    return _save(folder, model, image_processor, tokenizer)


def build_llava_next(folder: str | Path, source: str | Path | None = None) -> Path:
    """Write a tiny LLaVA-NeXT made of a tiny LLaVA's tower, projector and decoder: tiles as large as its pictures.

    Pictures get 1 x 2, 2 x 1 or 2 x 2 tiles. The newline token, which LLaVA does not have, starts as its full stop.

    Args:
        folder: made if it is not there.
        source: checkpoint of the LLaVA; the shipped one by default.
    """
    source = weights.path("llava") if source is None else source
    llava: Any = LlavaForConditionalGeneration.from_pretrained(source, dtype=torch.float32)
    given = LlavaProcessor.from_pretrained(source, backend="pil")
    tokenizer, tile = given.tokenizer, llava.config.vision_config.image_size
    pinpoints = [[tile, 2 * tile], [2 * tile, tile], [2 * tile, 2 * tile]]
    config = LlavaNextConfig(
        vision_config=llava.config.vision_config, text_config=llava.config.text_config,
        image_token_index=llava.config.image_token_index, image_grid_pinpoints=pinpoints,
        vision_feature_layer=llava.config.vision_feature_layer, image_seq_length=llava.config.image_seq_length,
        vision_feature_select_strategy="default",
    )  # fmt: skip
    with _seeded(0):
        model = LlavaNextForConditionalGeneration(config)
    newline = llava.get_input_embeddings().weight[_id(tokenizer, ".")].detach().clone()
    model.load_state_dict({**llava.state_dict(), "model.image_newline": newline})
    model.generation_config = llava.generation_config
    image_processor = LlavaNextImageProcessorPil(
        size={"shortest_edge": tile}, crop_size={"height": tile, "width": tile}, image_grid_pinpoints=pinpoints,
        image_mean=list(OPENAI_CLIP_MEAN), image_std=list(OPENAI_CLIP_STD),
    )  # fmt: skip
    processor = LlavaNextProcessor(
        image_processor=image_processor, tokenizer=tokenizer, patch_size=given.patch_size,
        vision_feature_select_strategy="default", num_additional_image_tokens=1, chat_template=LLAVA_CHAT,
    )  # fmt: skip
    return _save(folder, model, processor)


@contextmanager
def _seeded(seed: int) -> Iterator[None]:
    """Draw from ``seed`` within, and leave the caller's random state (and every accelerator's) as it was."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        yield


def _lay_out_positions(model: LlavaForConditionalGeneration) -> None:
    """Start CLIP's learned positions from 2-D sines, so that the tower need not first discover which patches touch."""
    table = model.model.vision_tower.embeddings.position_embedding.weight
    width = table.shape[1]
    side = round((table.shape[0] - 1) ** 0.5)
    freq_F = 0.5 * torch.pi * torch.logspace(0, -1, width // 4)
    angle_NF = torch.arange(side)[:, None] * freq_F
    wave_NE = torch.cat([angle_NF.sin(), angle_NF.cos()], dim=1)
    rows, columns = wave_NE.repeat_interleave(side, dim=0), wave_NE.repeat(side, 1)
    with torch.no_grad():
        table[1:] = 0.3 * torch.cat([rows, columns], dim=1)


def _id(tokenizer: Any, token: str) -> int:
    return int(tokenizer.convert_tokens_to_ids(token))


def _save(folder: str | Path, *parts: object) -> Path:
    folder = Path(folder)
    for part in parts:
        part.save_pretrained(folder)  # type: ignore[attr-defined]
    return folder
