"""Physical gather: the surviving tokens of every row, moved together and left-padded to the longest row.

Shapes: B rows, S positions before, M positions after, "..." any further dimensions.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

IGNORED = -100
"""Label of a position that takes no part in the loss."""


@dataclass(frozen=True)
class Rows:
    """Which positions of a sequence survive, row by row.

    Attributes:
        index_BM: long, where each survivor stood; on padding the position of a token that was dropped.
        real_BM: bool, False on the padding, which is on the left.
        ragged: whether there is any padding.
    """

    index_BM: Tensor
    real_BM: Tensor
    ragged: bool

    @classmethod
    def of(cls, keep_BS: Tensor, lengths: list[int]) -> Rows:
        """The rows of a mask; `lengths` are its row sums (handed in because reading them waits for the device)."""
        longest = max(lengths)
        # A stable sort puts the dropped positions first and leaves the kept ones in order behind them.
        index_BM = keep_BS.to(torch.uint8).argsort(dim=1, stable=True)[:, -longest:]
        return cls(index_BM, keep_BS.gather(1, index_BM), min(lengths) < longest)

    def take(self, x_BS: Tensor) -> Tensor:
        """`(B or 1, S, ...)` to `(B, M, ...)`, on the device of `x_BS`."""
        index_BM = self.index_BM.to(x_BS.device)
        if x_BS.shape[0] == 1 and index_BM.shape[0] > 1:
            x_BS = x_BS.expand(index_BM.shape[0], *x_BS.shape[1:])
        index = index_BM.reshape(*index_BM.shape, *(1,) * (x_BS.ndim - 2)).expand(*index_BM.shape, *x_BS.shape[2:])
        return x_BS.gather(1, index)

    def after(self, earlier: Rows) -> Rows:
        """These rows, given in the positions that `earlier` left, in the positions that `earlier` started from."""
        return Rows(earlier.index_BM.gather(1, self.index_BM), self.real_BM, self.ragged)

    def select(self, rows: Tensor) -> Rows:
        """The rows of these indices (or of this bool mask)."""
        rows = rows.to(self.index_BM.device)
        return Rows(self.index_BM[rows], self.real_BM[rows], self.ragged)


def dropped_before(rows: Rows, attended_BS: Tensor) -> Tensor:
    """Long BM: how many attended positions were dropped in front of each survivor; 0 on padding."""
    rank_BM = rows.take(attended_BS.long().cumsum(1)).to(rows.real_BM.device) - rows.real_BM.long().cumsum(1)
    return rank_BM.masked_fill(~rows.real_BM, 0)


def take_labels(rows: Rows, labels_BS: Tensor) -> Tensor:
    """Labels BM of the survivors.

    Padding is ignored, and so is each row's first token: what stands before it is padding, which predicts nothing.
    """
    real_BM = rows.real_BM.to(labels_BS.device)
    first_BM = real_BM.cumsum(1) == 1
    return rows.take(labels_BS).masked_fill(~real_BM | first_BM, IGNORED)
