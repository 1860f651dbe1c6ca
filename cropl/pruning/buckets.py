"""Length buckets: few sequence lengths that compiled layers run at, and how rows are laid out at one of them.

Rows are padded on the right. A causal layer's tokens never see what lies behind them, so a prefill needs no mask,
whatever its rows' lengths are, and stays on the fused causal kernel.

Shapes: B rows, S positions of the prompt as it was given, T positions of a bucket.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cropl.pruning.base import PruningError

BUCKETS = (*range(32, 512, 32), *range(512, 1024, 64), *range(1024, 4097, 256))
"""Lengths in tokens of text and picture together: at most a third of a bucket above 64 is padding, at most a fifth of
one above 1024."""


def check_buckets(buckets: Sequence[int]) -> tuple[int, ...]:
    """The buckets, if they are ascending lengths of at least 2."""
    found = tuple(buckets)
    whole = all(isinstance(length, int) and not isinstance(length, bool) and length >= 2 for length in found)
    if not found or not whole or list(found) != sorted(set(found)):
        raise ValueError(f"buckets={buckets!r}: give ascending lengths in tokens, each at least 2")
    return found


def bucket_of(length: int, buckets: Sequence[int]) -> int:
    """The least bucket that `length` tokens fit into.

    Raises:
        PruningError: none is long enough.
    """
    at = bisect_left(buckets, length)
    if at == len(buckets):
        raise PruningError(
            f"{length} tokens do not fit into the largest bucket, {buckets[-1]}: give StaticRunner a longer one "
            f"(buckets=(..., {-(-length // 64) * 64})), shorten the prompt, or prune it before the first layer"
        )
    return buckets[at]


@dataclass(frozen=True)
class Layout:
    """The tokens of every row, from the left, at the length of a bucket.

    Attributes:
        index_BT: long, where each token stands in the prompt; on padding that of any token.
        keep_BS: bool, the prompt's positions that are there.
        length_B: long, tokens of each row.
        lengths: the same numbers.
    """

    index_BT: Tensor
    keep_BS: Tensor
    length_B: Tensor
    lengths: tuple[int, ...]

    @classmethod
    def of(cls, keep_BS: Tensor, lengths: Sequence[int], bucket: int) -> Layout:
        """The kept positions, in order; `lengths` are the row sums (handed in: reading them waits for the device)."""
        # A stable sort puts the kept positions first and leaves them in order.
        index_BT = (~keep_BS).to(torch.uint8).argsort(dim=1, stable=True)[:, :bucket]
        index_BT = torch.nn.functional.pad(index_BT, (0, bucket - index_BT.shape[1]))
        return cls(index_BT, keep_BS, torch.tensor(lengths, device=keep_BS.device), tuple(lengths))

    @property
    def bucket(self) -> int:
        """T."""
        return self.index_BT.shape[1]

    def take(self, x_BSD: Tensor) -> Tensor:
        """`(B, S, D)` to `(B, T, D)`."""
        return _taken(x_BSD, self.index_BT)

    def places(self, position: Tensor) -> Tensor:
        """Positions of the tokens: `(..., B, S)` to `(..., B, T)`."""
        index = self.index_BT.to(position.device)
        return position.gather(-1, index.expand(*position.shape[:-1], -1))

    def take_from(self, earlier: Layout, x_BTD: Tensor) -> Tensor:
        """The same, of what lies in an earlier layout, which has to hold all of these tokens."""
        place_BS = (earlier.keep_BS.long().cumsum(1) - 1).clamp(min=0)
        return _taken(x_BTD, place_BS.gather(1, self.index_BT).clamp(max=earlier.bucket - 1))

    def last(self, x_BTD: Tensor) -> Tensor:
        """Each row's last token: `(B, T, D)` to `(B, D)`."""
        return _taken(x_BTD, self.length_B[:, None] - 1)[:, 0]


def _taken(x_BND: Tensor, index_BT: Tensor) -> Tensor:
    index = index_BT.to(x_BND.device)[..., None].expand(-1, -1, x_BND.shape[-1])
    return x_BND.gather(1, index)
