"""What a pruned model's last prefill kept.

Shapes: B rows, M surviving positions, L decoder layers.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cropl.pruning.gather import Rows


class Record:
    """The record of the last prefill.

    Attributes:
        prefills: how many prefills ran.
        visual_BL: long, visual tokens entering each decoder layer, per row; None before the first prefill.
        survivors_BM: long, the unpruned positions that outputs stand for, -1 on padding; None if nothing was dropped.
        waste: padded positions per token behind the last prune, had its rows been padded to the longest; 1 is none.
        packed: whether they ran packed instead.
    """

    def __init__(self) -> None:
        self.prefills = 0
        self.visual_BL: Tensor | None = None
        self.survivors_BM: Tensor | None = None
        self.waste, self.packed = 1.0, False
        self._total_B: Tensor | None = None

    @property
    def visual_B(self) -> Tensor | None:
        """Long: visual tokens per row before pruning."""
        return self._total_B

    @property
    def kept_B(self) -> Tensor | None:
        """Long: visual tokens that the last layer sees, per row of the prefill; `generate` repeats rows for beams."""
        return None if self.visual_BL is None else self.visual_BL[:, -1]

    def note_prefill(self, counts: Sequence[int], num_layers: int) -> None:
        """A prefill of rows with so many visual tokens begins."""
        self.prefills += 1
        self._total_B = torch.tensor(counts)
        self.visual_BL = self._total_B[:, None].repeat(1, num_layers)
        self.survivors_BM, self.waste, self.packed = None, 1.0, False

    def note_prune(self, layer: int, kept: Sequence[int], rows: Rows, waste: float, packed: bool) -> None:
        """Before this layer, rows were left with so many visual tokens; the others are as for the class."""
        assert self.visual_BL is not None
        self.visual_BL[:, layer:] = torch.tensor(kept)[:, None]
        self.survivors_BM = rows.index_BM.masked_fill(~rows.real_BM, -1)
        self.waste, self.packed = waste, packed
