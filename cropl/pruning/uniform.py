"""Uniform tokens: every n-th one, the control that methods for choosing tokens have to beat without any chance."""

from __future__ import annotations

from torch import Tensor

from cropl.pruning.base import DecoderView, InnerLLM, Positions, check_layer, check_positions
from cropl.pruning.select import Amount, check_tokens, spread, wanted


class UniformTokens(InnerLLM):
    """Keeps evenly spaced visual tokens of the row-major sequence from decoder layer K on.

    Args:
        tokens: how many stay: a count, or a share in (0, 1] of the row's own tokens.
        layer: K, the number of layers that see every token.
        positions: "original" (default) or "compact".
    """

    def __init__(self, tokens: Amount, layer: int = 2, positions: Positions = "original") -> None:
        self.tokens = check_tokens(tokens)
        self.layer = check_layer(layer)
        self.positions = check_positions(positions)

    @property
    def name(self) -> str:
        return "uniform"

    @property
    def layers(self) -> tuple[int, ...]:
        return (self.layer,)

    def keep(self, view: DecoderView) -> Tensor:
        return spread(view.living_BS, [wanted(self.tokens, total) for total in view.total_B])
