"""A tiny random InternVL and its processor: tiles of 4 x 4 tokens, up to six of them, and a thumbnail."""

from __future__ import annotations

from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import InternVLConfig, InternVLForConditionalGeneration, PreTrainedTokenizerFast, Qwen2Config
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig

from cropl.models.internvl import InternProcessor
from tests.reference.checkpoints import WORDS

TILE, PATCH, VOCAB = 32, 4, 40
MARKS = {"start_image_token": "<img>", "end_image_token": "</img>", "context_image_token": "<IMG_CONTEXT>"}
SPECIAL = ["<pad>", "<|im_start|>", "<|im_end|>", "<unk>", *MARKS.values()]
CHAT = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }} {% for part in message['content'] %}"
    "{% if part['type'] == 'image' %}<IMG_CONTEXT>\n{% else %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)


def tiny_internvl(
    layers: int = 4, kv_heads: int = 2, dtype: torch.dtype = torch.float64, seed: int = 0, attention: str = "sdpa"
) -> Any:
    """A random InternVL: width 32, weights large enough that tokens matter to each other."""
    vision = InternVLVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2, image_size=TILE,
        patch_size=PATCH, initializer_range=0.3, layer_scale_init_value=1.0,
    )  # fmt: skip
    text = Qwen2Config(
        vocab_size=VOCAB, hidden_size=32, intermediate_size=48, num_hidden_layers=layers, num_attention_heads=4,
        num_key_value_heads=kv_heads, max_position_embeddings=1024, initializer_range=0.3, pad_token_id=0,
        bos_token_id=None, eos_token_id=2,
    )  # fmt: skip
    config = InternVLConfig(
        vision_config=vision, text_config=text, image_token_id=SPECIAL.index("<IMG_CONTEXT>"),
        image_seq_length=(TILE // PATCH // 2) ** 2, tie_word_embeddings=False,
    )  # fmt: skip
    config._attn_implementation = attention
    torch.manual_seed(seed)
    model = InternVLForConditionalGeneration(config).to(dtype).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    return model


def intern_images(**options: Any) -> GotOcr2ImageProcessorPil:
    """The image processor of such a model."""
    return GotOcr2ImageProcessorPil(
        size={"height": TILE, "width": TILE}, min_patches=1, max_patches=6, crop_to_patches=True, **options
    )


def intern_tokenizer() -> PreTrainedTokenizerFast:
    """Its words, and the tokens by whose names `InternVLProcessor` finds them."""
    names = [*SPECIAL, *WORDS, "user", "assistant"]
    names += [f"<{number}>" for number in range(len(names), VOCAB)]
    core = Tokenizer(models.WordLevel({name: number for number, name in enumerate(names)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    return PreTrainedTokenizerFast(
        tokenizer_object=core, pad_token="<pad>", eos_token="<|im_end|>", unk_token="<unk>",
        extra_special_tokens=MARKS, additional_special_tokens=["<|im_start|>"], chat_template=CHAT,
    )  # fmt: skip


def intern_processor() -> InternProcessor:
    """The processor of such a model."""
    return InternProcessor(intern_images(), intern_tokenizer())
