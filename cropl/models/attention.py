"""Attention of chosen query rows, from a layer's own projections: no second forward, no S x S matrix.

Shapes: B rows, S positions, T query rows, H heads, D width, E width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class LayerInput:
    """What a layer's attention was given: normed hidden states, and (cos, sin) of its rotary embedding."""

    attention: Any
    hidden_BSD: Tensor
    cos_BSE: Tensor
    sin_BSE: Tensor

    def rows(self, batch_T: Tensor, position_T: Tensor, allowed_TS: Tensor) -> Tensor:
        """Log attention (T, H, S) of the queries at (``batch_T``, ``position_T``) to the positions they may see."""
        head = self.attention.head_dim
        query_THE = self.attention.q_proj(self.hidden_BSD[batch_T, position_T]).unflatten(-1, (-1, head))
        key_BSHE = self.attention.k_proj(self.hidden_BSD).unflatten(-1, (-1, head))
        query_THE = _rotated(query_THE, *(part[batch_T, position_T][:, None] for part in (self.cos_BSE, self.sin_BSE)))
        key_BSHE = _rotated(key_BSHE, self.cos_BSE[:, :, None], self.sin_BSE[:, :, None])
        groups = query_THE.shape[1] // key_BSHE.shape[2]
        key_TSHE = key_BSHE[batch_T].repeat_interleave(groups, dim=2)
        score_THS = torch.einsum("the,tshe->ths", query_THE, key_TSHE) * self.attention.scaling
        return score_THS.masked_fill(~allowed_TS[:, None], float("-inf")).log_softmax(-1)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


@contextmanager
def watched(decoder: Any, layers: Sequence[int]) -> Iterator[dict[int, LayerInput]]:
    """Record the inputs of the attention of ``layers`` during forwards inside the block."""
    seen: dict[int, LayerInput] = {}

    def record(index: int) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            hidden = args[0] if args else kwargs["hidden_states"]
            cos, sin = kwargs["position_embeddings"]
            shape = (*hidden.shape[:2], cos.shape[-1])
            seen[index] = LayerInput(module, hidden, cos.expand(shape), sin.expand(shape))

        return hook

    handles = [decoder.layers[i].self_attn.register_forward_pre_hook(record(i), with_kwargs=True) for i in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
