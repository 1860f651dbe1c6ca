"""Prompts as a tokenizer reads them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def special_tokens(tokenizer: Any) -> list[str]:
    """Every string that a tokenizer reads as a control token, also those that `all_special_tokens` leaves out."""
    return [token.content for token in tokenizer.added_tokens_decoder.values() if token.special]


def left_padded(tokenizer: Any, prompts: Sequence[str], adds_bos: bool, device: torch.device) -> dict[str, Tensor]:
    """`input_ids` and `attention_mask` BS of prompts, padded on the left, on a device.

    Args:
        tokenizer: the processor's.
        prompts: with as many placeholders as there are visual tokens.
        adds_bos: see `VLM.adds_bos`.
        device: where the model takes them.
    """
    made = tokenizer(list(prompts), padding=True, padding_side="left", add_special_tokens=adds_bos, return_tensors="pt")
    return {name: made[name].to(device) for name in ("input_ids", "attention_mask")}
