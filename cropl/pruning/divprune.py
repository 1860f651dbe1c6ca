"""DivPrune (Alvar et al., CVPR 2025): the most diverse visual tokens by max-min distance, before the language model."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cropl.pruning.base import DecoderView, InnerLLM, Positions, check_layer, check_positions
from cropl.pruning.select import Amount, check_tokens, wanted

# V visual tokens, M kept ones, D width


class DivPrune(InnerLLM):
    """Farthest-point selection under the distance 1 - cosine, of what enters decoder layer K.

    The first token is the one whose nearest neighbour is farthest; each further one is the farthest from those chosen.

    Args:
        tokens: how many stay: a count, or a share in (0, 1] of the row's own tokens.
        layer: K; 0 (default, as published) selects among the projected tokens, before the language model.
        positions: "compact" (default, as published) or "original".
    """

    def __init__(self, tokens: Amount, layer: int = 0, positions: Positions = "compact") -> None:
        self.tokens = check_tokens(tokens)
        self.layer = check_layer(layer)
        self.positions = check_positions(positions)

    @property
    def name(self) -> str:
        return "divprune"

    @property
    def layers(self) -> tuple[int, ...]:
        return (self.layer,)

    def flops(self, config: Any, total: int, visual_L: Sequence[int], text: int) -> int:
        seen = visual_L[self.layer - 1] if self.layer else total
        return 2 * seen**2 * config.hidden_size

    def keep(self, view: DecoderView) -> Tensor:
        keep_BS = view.attended_BS.clone()
        for row, total in enumerate(view.total_B):
            if total:
                visual_S = view.living_BS[row]
                chosen_V = diverse(
                    view.hidden_BSD[row, visual_S.to(view.hidden_BSD.device)], wanted(self.tokens, total)
                )
                keep_BS[row, visual_S] = chosen_V.to(keep_BS.device)
        return keep_BS


def diverse(token_VD: Tensor, count: int) -> Tensor:
    """Bool (V,): `count` tokens, chosen greedily for the greatest distance to the nearest one chosen before."""
    unit_VD = torch.nn.functional.normalize(token_VD.float(), dim=-1)
    distance_VV = 1 - unit_VD @ unit_VD.T
    alone_VV = distance_VV + torch.diag(torch.full((len(token_VD),), float("inf"), device=token_VD.device))
    nearest_V = alone_VV.amin(1)  # a single token has no neighbour, and is chosen at once
    chosen_V = torch.zeros(len(token_VD), dtype=torch.bool, device=token_VD.device)
    for step in range(count):
        pick = nearest_V.masked_fill(chosen_V, float("-inf")).argmax()
        chosen_V[pick] = True
        nearest_V = distance_VV[pick] if step == 0 else torch.minimum(nearest_V, distance_VV[pick])
    return chosen_V
