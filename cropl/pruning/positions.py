"""Positions of survivors, renumbered as if what was dropped had never been there (`positions="compact"`).

A position is one number, or, under M-RoPE (Qwen), three: time, row and column. Text takes the next number on all three.
A picture's tokens take their row and column in it, counted from the next number on; what follows goes on behind the
larger of both counts. So a picture that kept some of its rows and columns is numbered as one of only these rows and
columns: as the model numbers a picture cropped to the region. Tokens that a method made have no place in the picture.
They lie in one row, as in training (`VLM.visual_positions` of a grid of 1 x M).

Shapes: B rows, S unpruned positions, M surviving ones, 3 axes of M-RoPE, I pictures of a row, P position numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from cropl.pruning.gather import Rows, dropped_before


@dataclass(frozen=True)
class Unpruned:
    """The sequence before anything was dropped.

    Attributes:
        attended_BS: bool, False on padding.
        visual_BS: bool, the visual tokens.
        position: long, what the rotary embedding was given: `(B or 1, S)`, or `(3, B or 1, S)` under M-RoPE.
    """

    attended_BS: Tensor
    visual_BS: Tensor
    position: Tensor

    @property
    def next_B(self) -> Tensor:
        """Long: the position of the token behind each row."""
        last = self.position.amax(-1)
        return (last.amax(0) if last.ndim == 2 else last).expand(len(self.visual_BS)) + 1

    def compact(self, rows: Rows, changed_B: Tensor, made_B: Tensor | None) -> tuple[Tensor, Tensor]:
        """Positions of the survivors, `(B, M)` or `(3, B, M)`, and long B: how much smaller those behind them are.

        Args:
            rows: the survivors.
            changed_B: bool, which rows to renumber: others are as they were.
            made_B: bool, rows in which a method put tokens of its own where visual tokens survive; None where none has.
        """
        device = self.position.device
        if self.position.ndim == 2:
            dropped_BM = dropped_before(rows, self.attended_BS).to(device)
            count_B = self.attended_BS.sum(1).to(device) - rows.real_BM.sum(1).to(device)
            return rows.take(self.position) - dropped_BM, count_B
        old_3BM = rows.take(self.position.movedim(0, -1)).movedim(-1, 0)
        real_BM, visual_BM = rows.real_BM.to(device), rows.take(self.visual_BS).to(device)
        begins_BS = self.visual_BS.clone()
        begins_BS[:, 1:] &= ~self.visual_BS[:, :-1]
        begun_BM = rows.take(begins_BS.long().cumsum(1)).to(device)  # pictures begun up to here, this one included
        new_3BM, next_B = _renumbered(old_3BM, real_BM, visual_BM & real_BM, begun_BM, made_B)
        changed_B = changed_B.to(device)
        first_B = old_3BM.masked_fill(~real_BM, torch.iinfo(torch.long).max).amin((0, 2))
        shift_B = (self.next_B - next_B - first_B).masked_fill(~changed_B, 0)
        return (new_3BM + first_B[:, None]).where(changed_B[:, None], old_3BM), shift_B


def _renumbered(
    old_3BM: Tensor, real_BM: Tensor, visual_BM: Tensor, begun_BM: Tensor, made_B: Tensor | None
) -> tuple[Tensor, Tensor]:
    """New positions from 0 on (3, B, M), and the next position of each row (B,)."""
    text_BM = real_BM & ~visual_BM
    picture_BM = (begun_BM - 1).clamp(min=0)
    pictures = int(begun_BM.max()) + 1
    if made_B is not None:
        rank_BM = visual_BM.long().cumsum(1)
        row_3BM = torch.stack([torch.zeros_like(rank_BM), torch.zeros_like(rank_BM), rank_BM])
        old_3BM = row_3BM.where(made_B.to(rank_BM.device)[:, None], old_3BM)
    # Which numbers each picture's tokens have on each axis: dense ranks among them are the new rows and columns.
    taken_3BIP = old_3BM.new_zeros(3, len(real_BM), pictures, int(old_3BM.max()) + 1, dtype=torch.bool)
    axis, row = torch.arange(3)[:, None, None], torch.arange(len(real_BM))[None, :, None]
    place = (axis.to(old_3BM.device), row.to(old_3BM.device), picture_BM[None])
    seen_3BM = visual_BM.expand(3, -1, -1)
    at_3BM = old_3BM.masked_fill(~seen_3BM, 0)
    taken_3BIP.index_put_(tuple(x.expand(seen_3BM.shape)[seen_3BM] for x in (*place, at_3BM)), seen_3BM.new_ones(()))
    rank_3BM = taken_3BIP.long().cumsum(-1)[(*place, at_3BM)] - 1
    size_BI = taken_3BIP.sum(-1).amax(0)
    before_BI = size_BI.cumsum(1) - size_BI  # numbers that the pictures in front of picture i take
    words_BM = text_BM.long().cumsum(1) - text_BM.long()
    start_BM = words_BM + before_BI.gather(1, picture_BM.where(visual_BM, begun_BM))
    new_3BM = (start_BM + rank_3BM.masked_fill(~seen_3BM, 0)).masked_fill(~real_BM, 0)
    return new_3BM, text_BM.sum(1) + size_BI.sum(1)
