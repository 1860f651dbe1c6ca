"""VisPruner (Zhang et al., ICCV 2025): important tokens by the vision tower's attention, and diverse ones beside them.

Shapes: V visual tokens, R those that attention did not choose, E and O every second of those left of them.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cropl.models.tower_view import TowerView, exact
from cropl.pruning.select import Amount
from cropl.pruning.tower import Reduced, TowerMethod, looking_flops, tower_width

ROUND = 8
"""Tokens that a round drops at most."""


class VisPruner(TowerMethod):
    """Keeps the tokens with most attention in the tower, and of the others those least like one another.

    The attention is the class token's, averaged over heads; in a tower without one, that of all tokens. The others, by
    falling attention, are thinned in rounds: of every second one, up to eight that are most like one in between go.

    Args:
        tokens: how many an image becomes, see `TowerMethod`.
        important: share of them that attention chooses, in [0, 1].
    """

    def __init__(self, tokens: Amount = 64, important: float = 0.5) -> None:
        super().__init__(tokens)
        if not 0 <= important <= 1:
            raise ValueError(f"important={important!r}: must be a share in [0, 1]")
        self.important = float(important)

    @property
    def name(self) -> str:
        return "vispruner"

    def view_flops(self, config: Any, total: int, count: int) -> int:
        attended = int(count * self.important)
        compared = total - attended if attended < count < total else 0  # else nobody is left to choose among
        by_class = not hasattr(config.vision_config, "spatial_merge_size")
        width = tower_width(config) if by_class else config.get_text_config().hidden_size
        return looking_flops(config, total) + 2 * compared**2 * width

    def reduce(self, view: TowerView, count: int) -> Reduced:
        attended = int(count * self.important)
        order_V = view.attention_HV.mean(0).argsort(descending=True, stable=True)
        unit_VW = F.normalize(exact(view.feature_VW), dim=-1)
        diverse = distinct(unit_VW, order_V[attended:], count - attended)
        place_M = torch.cat([order_V[:attended], diverse]).sort().values
        return Reduced(view.token_VD[place_M], place_M)


def distinct(unit_VW: Tensor, token_R: Tensor, count: int) -> Tensor:
    """`count` of the tokens `token_R` (indices into features of length 1), thinned in rounds."""
    if not 0 < count < len(token_R):
        return token_R[:count]
    unit_RW = unit_VW[token_R]
    likeness_RR = unit_RW @ unit_RW.T  # once: together the rounds would take more
    left_R = torch.arange(len(token_R), device=token_R.device)
    while (surplus := len(left_R) - count) > 0:
        even_E, odd_O = left_R[::2], left_R[1::2]
        highest_E = likeness_RR[even_E[:, None], odd_O].amax(1)
        order_E = highest_E.argsort(descending=True, stable=True)[min(ROUND, surplus) :]
        left_R = torch.cat([even_E[order_E], odd_O])
    return token_R[left_R]
