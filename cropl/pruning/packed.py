"""Ragged rows without padding: behind a prune, the survivors of all rows run through the layers as one sequence.

Norms and linear layers cost what the tokens that are there cost, and attention runs row by row on the fused causal
kernel, so the time of a batch follows its kept tokens and not its longest row. Only the key-value cache is padded, for
the decoding steps. The kernel is swapped in the decoder's config for as long as packed layers run.

Shapes: B rows, M positions of the longest row, P tokens of all rows together, G key heads, E width of a head.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward

KERNEL = "cropl_packed_sdpa"
"""Name under which `transformers` knows the attention of packed rows."""

WORTH = 1.05
"""Padded positions per token from which on packing pays for itself."""


@dataclass(frozen=True)
class Packing:
    """Where the tokens of left-padded rows lie once they are one sequence.

    Attributes:
        lengths: tokens of each row.
        longest: M.
        index_P: long, where each token stands among the B * M padded positions.
    """

    lengths: tuple[int, ...]
    longest: int
    index_P: Tensor

    @classmethod
    def of(cls, lengths: Sequence[int], device: torch.device) -> Packing:
        """The packing of left-padded rows of these lengths."""
        longest = max(lengths)
        starts = [(row + 1) * longest - length for row, length in enumerate(lengths)]
        parts = [torch.arange(start, start + length) for start, length in zip(starts, lengths, strict=True)]
        return cls(tuple(lengths), longest, torch.cat(parts).to(device))

    def options(self, kernel: str) -> dict[str, Any]:
        """What an attention kernel has to be told of the rows."""
        if kernel == KERNEL:
            return {"row_lengths": self.lengths}
        longest = {"max_length_q": self.longest, "max_length_k": self.longest}
        return {"cu_seq_lens_q": self._ends, "cu_seq_lens_k": self._ends, **longest}

    @cached_property
    def _ends(self) -> Tensor:
        """Int32: where rows end, with a 0 in front; once for all layers."""
        return torch.tensor([0, *self.lengths]).cumsum(0).to(self.index_P.device, torch.int32)

    @property
    def waste(self) -> float:
        """Padded positions per token: how much longer layers would be busy without packing."""
        return len(self.lengths) * self.longest / sum(self.lengths)

    def pack(self, x_BM: Tensor) -> Tensor:
        """`(B or 1, M, ...)` to `(1, P, ...)`."""
        if len(x_BM) == 1:
            x_BM = x_BM.expand(len(self.lengths), *x_BM.shape[1:])
        return x_BM.flatten(0, 1).index_select(0, self.index_P.to(x_BM.device))[None]

    def pad(self, x_1P: Tensor) -> Tensor:
        """`(1, P, ...)` to `(B, M, ...)`, zeros on the padding."""
        rows = len(self.lengths)
        x_BM = x_1P.new_zeros(rows * self.longest, *x_1P.shape[2:])
        return x_BM.index_copy(0, self.index_P.to(x_1P.device), x_1P[0]).unflatten(0, (rows, self.longest))

    def pad_heads(self, x_1GPE: Tensor) -> Tensor:
        """Keys or values `(1, G, P, E)` to `(B, G, M, E)`."""
        return self.pad(x_1GPE.transpose(1, 2)).transpose(1, 2)


def packed_sdpa(
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    row_lengths: Sequence[int],
    **options: Any,
) -> tuple[Tensor, None]:
    """Causal attention of `(1, heads, P, E)` within rows of these lengths; arguments as `transformers` gives them."""
    rows = zip(*(part.split(list(row_lengths), dim=2) for part in (query, key, value)), strict=True)
    return torch.cat([sdpa_attention_forward(module, q, k, v, None, **options)[0] for q, k, v in rows], dim=1), None


AttentionInterface.register(KERNEL, packed_sdpa)


class Kernel:
    """Swaps the attention kernel that a decoder's config names, and back."""

    def __init__(self, config: Any) -> None:
        self.config = config
        self._own: str | None = None

    @property
    def packs(self) -> bool:
        """Whether there is an attention of packed rows for the config's own kernel."""
        return self.config._attn_implementation == "sdpa" or self._flash

    @property
    def _flash(self) -> bool:
        return str(self.config._attn_implementation).startswith("flash_attention_")

    def packed(self) -> str:
        """From now on, attention is that of packed rows; the kernel's name. Flash attention's own takes them."""
        if self._own is None and not self._flash:
            self._own, self.config._attn_implementation = self.config._attn_implementation, KERNEL
        return str(self.config._attn_implementation)

    def restore(self) -> None:
        """The config's own kernel again; nothing to do where it was not swapped."""
        if self._own is not None:
            self.config._attn_implementation, self._own = self._own, None
