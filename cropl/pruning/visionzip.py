"""VisionZip (Yang et al., CVPR 2025): dominant and contextual tokens, by what the vision tower itself attends to.

Shapes: V visual tokens, C contextual ones, R those that are not dominant, D the decoder's width.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cropl.models.tower_view import TowerView, exact
from cropl.pruning.select import Amount
from cropl.pruning.tower import Reduced, TowerMethod, looking_flops, tower_width


class VisionZip(TowerMethod):
    """Keeps the tokens that get most attention in the tower, and merges the others into a few.

    Dominant are the class token and the patches with most of its attention, summed over heads; in a tower without one,
    those with most attention of all. Of the others every so-many-th is a target, and gains the mean of those whose keys
    are most like its own. In front of the projector, where that does not merge patches itself.

    The order is published: class token, dominant and contextual tokens, at consecutive positions. Without a class token
    all tokens stand in their own places.

    Args:
        tokens: how many an image becomes, see `TowerMethod`. Published are 192, 128, 64 (162 + 30, 108 + 20, 54 + 10),
            and for five crops 640, 320, 160 (five times 108 + 20, 54 + 10, 27 + 5).
        contextual: share of them that is merged, in [0, 1).
    """

    def __init__(self, tokens: Amount = 64, contextual: float = 1 / 6.4) -> None:
        super().__init__(tokens)
        if not 0 <= contextual < 1:
            raise ValueError(f"contextual={contextual!r}: must be a share in [0, 1)")
        self.contextual = float(contextual)

    @property
    def name(self) -> str:
        return "visionzip"

    def view_flops(self, config: Any, total: int, count: int) -> int:
        vision, width, tower = config.vision_config, config.get_text_config().hidden_size, tower_width(config)
        merged = min(count - 1, math.floor(count * self.contextual + 0.5))
        by_class = not hasattr(vision, "spatial_merge_size")
        patches = count - merged - by_class
        others = total - patches - merged
        heads = getattr(vision, "num_heads", None) or vision.num_attention_heads
        merging = others * merged * (tower // heads + (tower if by_class else width))
        projected = (merged + 1) * (tower * width + width**2) if by_class else 0
        return looking_flops(config, total) + 2 * (merging + projected)

    def reduce(self, view: TowerView, count: int) -> Reduced:
        merged = min(count - 1, math.floor(count * self.contextual + 0.5))
        patches = count - merged - (view.class_W is not None)
        order_V = view.attention_HV.sum(0).argsort(descending=True, stable=True)
        dominant, rest_R = order_V[:patches].sort().values, order_V[patches:].sort().values
        target_C = rest_R[:: max(1, len(rest_R) // merged)][:merged] if merged else rest_R[:0]
        context_CW = _merged(view, target_C, rest_R)
        if view.class_W is not None:
            made = view.project(torch.cat([view.class_W[None], context_CW]))
            return Reduced(torch.cat([made[:1], view.token_VD[dominant], made[1:]]))
        token_MD = torch.cat([view.token_VD[dominant], view.project(context_CW)])
        place_M, order_M = torch.cat([dominant, target_C]).sort()
        return Reduced(token_MD[order_M], place_M)


def _merged(view: TowerView, target_C: Tensor, rest_R: Tensor) -> Tensor:
    """Features (C, W) of the targets, each plus the mean of the other tokens nearest to it."""
    other = rest_R[~torch.isin(rest_R, target_C)]
    feature_CW = view.feature_VW[target_C]
    if not len(target_C) or not len(other):
        return feature_CW
    key_VE = F.normalize(exact(view.key_VE), dim=-1)
    nearest = (key_VE[other] @ key_VE[target_C].T).argmax(1)
    number_C = torch.arange(len(target_C), device=nearest.device)
    joins_CN = (nearest == number_C[:, None]).to(feature_CW.dtype)
    return feature_CW + joins_CN @ view.feature_VW[other] / joins_CN.sum(1, keepdim=True).clamp(min=1)
