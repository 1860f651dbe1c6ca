"""A tiny LLaVA checkpoint folder with a real processor, as `from_pretrained` finds it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import CLIPImageProcessor, LlavaProcessor, PreTrainedTokenizerFast

from tests.reference.tiny import IMAGE, tiny_llava

WORDS = ["USER", ":", "ASSISTANT", "What", "colour", "is", "the", "sign", "?", "Read", "it", ".", "How", "many"]


def tiny_processor(side: int = 8, patch: int = 4) -> Any:
    """The processor of LLaVA checkpoints on the hub: CLIP's image processor, which crops the centre by default."""
    special = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "<image>": IMAGE}
    words = {word: index for index, word in enumerate(WORDS, start=4)}
    fill = {f"<{index}>": index for index in range(4 + len(WORDS), IMAGE)}
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
    """Write the checkpoint and return its folder."""
    tiny_llava(3, 2, dtype).save_pretrained(folder)
    tiny_processor().save_pretrained(folder)
    return folder
