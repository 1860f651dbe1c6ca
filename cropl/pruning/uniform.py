"""Uniform tokens: every n-th one, the control that methods for choosing tokens have to beat without any chance."""

from __future__ import annotations

import torch
from torch import Tensor

from cropl.pruning.base import DecoderView, InnerLLM, Positions, check_layer, check_positions
from cropl.pruning.select import Tokens, check_tokens, wanted


class UniformTokens(InnerLLM):
    """Keeps evenly spaced visual tokens of the row-major sequence from decoder layer K on.

    Args:
        tokens: how many stay: a count, or a share in (0, 1] of the row's own tokens.
        layer: K, the number of layers that see every token.
        positions: "original" (default) or "compact".
    """

    def __init__(self, tokens: Tokens, layer: int = 2, positions: Positions = "original") -> None:
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
        count_B1 = torch.tensor([wanted(self.tokens, total) for total in view.total_B])[:, None]
        total_B1 = torch.tensor(view.total_B)[:, None]
        living_BS = view.living_BS
        index_BS = living_BS.long().cumsum(1) - 1
        count_B1, total_B1 = count_B1.to(index_BS.device), total_B1.to(index_BS.device)
        # Of V tokens, n intervals of V / n each give the token in which one begins: index * n // V steps up there.
        begins_BS = (index_BS * count_B1) // total_B1.clamp(min=1) != ((index_BS - 1) * count_B1) // total_B1.clamp(
            min=1
        )
        return living_BS & begins_BS
