"""Untrained checkpoint folders: real architectures and processors, narrow and random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoProcessor,
    AutoTokenizer,
    CLIPImageProcessor,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
    Qwen2VLForConditionalGeneration,
)

from cropl.prompt import RegionCodec
from cropl.testbed.build import build_llava, build_qwen2_vl
from tests.reference import tiny

WORDS = ["USER", ":", "ASSISTANT", "What", "colour", "is", "the", "sign", "?", "Read", "it", ".", "How", "many"]


def tiny_processor(side: int = 8, patch: int = 4) -> Any:
    """The processor of LLaVA checkpoints on the hub: CLIP's image processor, which crops the centre by default."""
    special = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "<image>": tiny.IMAGE}
    words = {word: index for index, word in enumerate(WORDS, start=4)}
    fill = {f"<{index}>": index for index in range(4 + len(WORDS), tiny.IMAGE)}
    tokenizer = Tokenizer(models.WordLevel(special | words | fill, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens=["<image>"],
        padding_side="right",
    )
    size = side * patch
    images = CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    return LlavaProcessor(
        image_processor=images,
        tokenizer=fast,
        patch_size=patch,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    )


def save_tiny(folder: Path, dtype: torch.dtype = torch.float16) -> Path:
    """Write the model of `tiny.py` as the hub has LLaVA (half precision, a processor that crops); its folder.

    The fixtures below have the testbed's architecture instead, with its words, sizes and prompts.
    """
    tiny.tiny_llava(3, 2, dtype).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def tiny_llava(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of an untrained LLaVA: 12x12 visual tokens, three narrow decoder layers, the testbed's vocabulary."""
    folder = build_llava(tmp_path_factory.mktemp("llava"), layers=3, width=32)
    config, processor = LlavaConfig.from_pretrained(folder), AutoProcessor.from_pretrained(folder)
    config.vision_config.image_size, config.image_seq_length = 96, 144
    config.vision_config.num_hidden_layers = 1
    torch.manual_seed(0)
    LlavaForConditionalGeneration(config).save_pretrained(folder)
    processor.image_processor.size = {"shortest_edge": 96}
    processor.image_processor.crop_size = {"height": 96, "width": 96}
    processor.save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def tiny_localizer(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Folder of an untrained localizer: a Qwen2-VL whose tokenizer knows the coordinate tokens."""
    folder = build_qwen2_vl(tmp_path_factory.mktemp("localizer"), layers=2, width=128)
    model, tokenizer = Qwen2VLForConditionalGeneration.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    tokenizer.add_tokens(RegionCodec().added_tokens, special_tokens=True)
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return str(folder)
