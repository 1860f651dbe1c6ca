"""Attention masks of the layers behind a prune, in the form that the model's attention kernel takes.

Where rows are equally long there is no mask at all, so that SDPA stays on its fused causal kernel.

Shapes: B rows, T query positions, M key positions, D hidden width.
"""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor
from transformers import Cache
from transformers.masking_utils import create_causal_mask

from cropl.pruning.base import NotSupportedError


def layer_mask(
    config: Any, hidden_BTD: Tensor, attended_BM: Tensor | None, cache: Cache | None, layer: int
) -> Tensor | None:
    """The causal mask for queries `hidden_BTD` in `layer`, or None where the kernel needs none.

    Args:
        config: the decoder's config, which names the attention kernel.
        hidden_BTD: only its shape, type and device are used.
        attended_BM: bool over the keys of this layer (past and new), False on padding; None if there is no padding.
        cache: its length *in this layer* is used, which differs from layer 0's.
        layer: 0-based decoder layer.
    """
    mask: Any = create_causal_mask(
        config=config,
        inputs_embeds=hidden_BTD,
        attention_mask=None if attended_BM is None else attended_BM.to(hidden_BTD.device),
        past_key_values=cache,
        position_ids=None,  # gaps between surviving positions would be read as packed sequences
        layer_idx=layer,
    )
    return mask


def keep_diagonal(mask_B1MM: Tensor | None) -> Tensor | None:
    """Let every position of a prefill mask see itself.

    Real positions do already. A padding row would otherwise see nothing, and a softmax over nothing is NaN in some
    kernels. Masks that are not four-dimensional (flash attention unpads) are left alone.
    """
    if mask_B1MM is None or mask_B1MM.ndim != 4:
        return mask_B1MM
    diagonal = torch.eye(mask_B1MM.shape[-1], dtype=torch.bool, device=mask_B1MM.device)
    if mask_B1MM.dtype == torch.bool:
        return mask_B1MM | diagonal
    return mask_B1MM.masked_fill(diagonal, 0)


def check_kernel(config: Any) -> None:
    """Raise `NotSupportedError` for attention kernels whose masks are not known here, or a `transformers` too old."""
    kernel = config._attn_implementation
    if kernel not in ("sdpa", "eager") and not kernel.startswith("flash_attention_"):
        raise NotSupportedError(
            f"attention kernel {kernel!r} is not supported by pruning; "
            'load the model with attn_implementation="sdpa", "eager" or "flash_attention_2"'
        )
    if "layer_idx" not in inspect.signature(create_causal_mask).parameters:
        raise NotSupportedError("pruning needs a transformers whose create_causal_mask takes layer_idx (5.23 does)")
