"""Attention of chosen query rows, from a layer's own projections: no second forward, no S x S matrix.

Shapes: B rows, S positions, T query rows, H heads, G key heads, D width, E width of a head.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
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
    key_BGSE: Tensor | None = None
    """Its rotated keys (G key heads), where a cache has them: they need not be computed again."""

    @classmethod
    def of(cls, attention: Any, args: Sequence[Any], kwargs: Mapping[str, Any]) -> LayerInput:
        """From the arguments of an attention's forward."""
        hidden = args[0] if args else kwargs["hidden_states"]
        cos, sin = kwargs["position_embeddings"]
        shape = (*hidden.shape[:2], cos.shape[-1])
        return cls(attention, hidden, cos.expand(shape), sin.expand(shape))

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

    def mean(self, position_BT: Tensor, attended_BS: Tensor) -> Tensor:
        """Attention (B, T, S), float32 and averaged over heads, of the queries at these positions of every row.

        Args:
            position_BT: long; a query sees what is attended up to its own position.
            attended_BS: bool, False on padding.
        """
        head, rows = self.attention.head_dim, position_BT[..., None].to(self.hidden_BSD.device)
        query_BTD = self.hidden_BSD.gather(1, rows.expand(-1, -1, self.hidden_BSD.shape[-1]))
        query_BTHE = self.attention.q_proj(query_BTD).unflatten(-1, (-1, head))
        cos, sin = (part.gather(1, rows.expand(-1, -1, part.shape[-1])) for part in (self.cos_BSE, self.sin_BSE))
        query_BTHE = _rotated(query_BTHE, cos[:, :, None], sin[:, :, None])
        key_BGSE = self.key_BGSE
        if key_BGSE is None:
            key_BSGE = self.attention.k_proj(self.hidden_BSD).unflatten(-1, (-1, head))
            key_BGSE = _rotated(key_BSGE, self.cos_BSE[:, :, None], self.sin_BSE[:, :, None]).transpose(1, 2)
        query_BTGFE = query_BTHE.unflatten(2, (key_BGSE.shape[1], -1))  # F query heads share a key head
        score_BGFTS = torch.einsum("btgfe,bgse->bgfts", query_BTGFE, key_BGSE).float() * self.attention.scaling
        earlier_BTS = torch.arange(self.hidden_BSD.shape[1], device=rows.device) <= rows
        unseen_BTS = ~(earlier_BTS & attended_BS[:, None].to(rows.device))
        return score_BGFTS.masked_fill(unseen_BTS[:, None, None], float("-inf")).softmax(-1).flatten(1, 2).mean(1)


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    first, second = x.chunk(2, dim=-1)
    return x * cos + torch.cat([-second, first], dim=-1) * sin


def input_of(layer: Any, hidden_BSD: Tensor, rope: Sequence[Tensor]) -> LayerInput:
    """What the attention of a decoder layer is going to be given, from what the layer is given."""
    cos_BSE, sin_BSE = (part.expand(len(hidden_BSD), -1, -1) for part in rope)
    return LayerInput(layer.self_attn, layer.input_layernorm(hidden_BSD), cos_BSE, sin_BSE)


@contextmanager
def watched(decoder: Any, layers: Sequence[int]) -> Iterator[dict[int, LayerInput]]:
    """Record the inputs of the attention of ``layers`` during forwards inside the block."""
    seen: dict[int, LayerInput] = {}

    def record(index: int) -> Any:
        def hook(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            seen[index] = LayerInput.of(module, args, kwargs)

        return hook

    handles = [decoder.layers[i].self_attn.register_forward_pre_hook(record(i), with_kwargs=True) for i in layers]
    try:
        yield seen
    finally:
        for handle in handles:
            handle.remove()
