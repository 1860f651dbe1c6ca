"""FastV (Chen et al., ECCV 2024): the visual tokens that the last prompt token attends to most, before layer K."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from cropl.pruning.base import DecoderView, InnerLLM, Positions, check_layer, check_positions
from cropl.pruning.select import Amount, best, check_tokens, rating_flops, wanted


class FastV(InnerLLM):
    """Ranks visual tokens by the attention of layer K-1 from the last prompt token, averaged over heads.

    Only this one query row is computed, from the layer's own projections: every layer stays on its fused kernel.

    Args:
        tokens: how many stay: a count, or a share in (0, 1] of the row's own tokens.
        layer: K, the number of layers that see every token, at least 1.
        positions: "original" (default, as published) or "compact".
    """

    def __init__(self, tokens: Amount, layer: int = 2, positions: Positions = "original") -> None:
        self.tokens = check_tokens(tokens)
        self.layer = check_layer(layer)
        if self.layer < 1:
            raise ValueError("layer=0: FastV ranks by the attention of the layer before, give at least 1")
        self.positions = check_positions(positions)

    @property
    def name(self) -> str:
        return "fastv"

    @property
    def layers(self) -> tuple[int, ...]:
        return (self.layer,)

    @property
    def watches(self) -> tuple[int, ...]:
        return (self.layer - 1,)

    def flops(self, config: Any, total: int, visual_L: Sequence[int], text: int) -> int:
        return rating_flops(config, visual_L[self.layer - 1] + text)

    def keep(self, view: DecoderView) -> Tensor:
        score_BS = view.attention(self.layer - 1).mean(view.last_B[:, None], view.attended_BS)[:, 0]
        return best(score_BS, view.living_BS, [wanted(self.tokens, total) for total in view.total_B])
