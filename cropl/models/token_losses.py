"""Cross entropy of a language model's tokens without its logits: the vocabulary head and the loss, chunk by chunk.

All logits of a batch are tokens x vocabulary numbers, and softmax and gradient are as large: for a small model with a
large vocabulary more than all the rest. Here no more than `CHUNK` of them exist at a time, and the backward pass
computes them anew.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

# T tokens, D width, V vocabulary

CHUNK = 1 << 25
"""Logits that exist at a time: 128 MB in float32."""


def token_losses(hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, bias_V: Tensor | None = None) -> Tensor:
    """Cross entropy (T,) of each token, a float32 tensor or better; differentiable in hidden states, weight and bias.

    Uses torch's own chunked `linear_cross_entropy` where there is one (from 2.13 on), else each chunk is computed as
    the whole would be, and once more in the backward pass. In half precision either is as exact as all logits at once:
    torch's has logits in float32, and rounds each loss; ours rounds logits, and has losses in float32. A trained head's
    gradient is added up in half precision, chunk by chunk: to 4 in 1,000 of its norm instead of 2.

    Args:
        hidden_TD: hidden states that predict the targets; there may be none.
        weight_VD: of the vocabulary head, tied or not, frozen or not; a plain tensor also where it is sharded.
        targets_T: token ids.
        bias_V: of the head, if it has one.
    """
    hidden_TD, weight_VD, bias_V = _alike(hidden_TD, weight_VD, bias_V)
    compute = _torchs if HAS_TORCHS else _recomputed
    return compute(hidden_TD, weight_VD, targets_T, bias_V, _rows(weight_VD))


@torch.no_grad()
def correct_tokens(hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, bias_V: Tensor | None = None) -> Tensor:
    """Bool (T,): whether the target is the most probable token; the first one of equals. Arguments as above."""
    hidden_TD, weight_VD, bias_V = _alike(hidden_TD, weight_VD, bias_V)
    size = _rows(weight_VD)
    parts = [F.linear(chunk_CD, weight_VD, bias_V).argmax(1) for chunk_CD in hidden_TD.split(size)]
    return torch.cat(parts) == targets_T


HAS_TORCHS = torch.__version__ >= "2.13"  # before, torch has it, if at all, for sums and means alone
"""Whether torch's chunked loss gives one for each token."""


def _torchs(hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, bias_V: Tensor | None, rows: int) -> Tensor:
    # Left to itself it takes a chunk for every few tokens where the vocabulary is large: ten times slower.
    options: Any = torch.nn.LinearCrossEntropyOptions(batch_chunk_size=rows)
    loss_T = F.linear_cross_entropy(
        hidden_TD, weight_VD, targets_T, linear_bias=bias_V, reduction="none", options=options
    )
    return loss_T if loss_T.dtype == torch.float64 else loss_T.float()


def _recomputed(hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, bias_V: Tensor | None, rows: int) -> Tensor:
    parts = [
        checkpoint(_of_chunk, chunk_CD, weight_VD, target_C, bias_V, use_reentrant=False, preserve_rng_state=False)
        for chunk_CD, target_C in zip(hidden_TD.split(rows), targets_T.split(rows))
    ]
    return torch.cat(parts)


def _of_chunk(hidden_CD: Tensor, weight_VD: Tensor, target_C: Tensor, bias_V: Tensor | None) -> Tensor:
    logits_CV = F.linear(hidden_CD, weight_VD, bias_V)
    return F.cross_entropy(
        logits_CV if logits_CV.dtype == torch.float64 else logits_CV.float(), target_C, reduction="none"
    )


def _rows(weight_VD: Tensor) -> int:
    """Tokens of a chunk."""
    return max(1, CHUNK // len(weight_VD))


def _alike(hidden_TD: Tensor, weight_VD: Tensor, bias_V: Tensor | None) -> tuple[Tensor, Tensor, Tensor | None]:
    """All in the precision that a linear layer would compute in: under autocast its own, else the weight's."""
    kind = hidden_TD.device.type
    dtype = torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else weight_VD.dtype
    return hidden_TD.to(dtype), weight_VD.to(dtype), None if bias_V is None else bias_V.to(dtype)
