"""Hybrid: the region says where to look, and a score which of its tokens stay, with a sprinkle of those outside it.

Shapes: B rows, S positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from cropl.pruning.base import DecoderView, InnerLLM, Positions, check_layer, check_positions
from cropl.pruning.divprune import diverse
from cropl.pruning.select import Amount, best, check_tokens, rating_flops, spread, wanted

By = Literal["attention", "diversity", "uniform"]


class Hybrid(InnerLLM):
    """Keeps the best visual tokens of the requested region, and a few outside it, from decoder layer K on.

    `attention` scores as FastV does (layer K-1, from the last prompt token), `diversity` chooses as DivPrune does among
    what enters layer K, `uniform` takes evenly spaced ones. A row without a region has all of its image inside.

    Args:
        tokens: how many stay: a count, or a share in (0, 1] of the row's own tokens.
        layer: K, the number of layers that see every token; at least 1 with `attention`.
        outside: share in [0, 1) of `tokens` for what lies outside the region. What the region has no tokens for goes
            outside as well; 0 keeps nothing there, and a small region then fewer tokens than asked for.
        by: how tokens inside the region are chosen: attention, diversity or uniform.
        outside_by: how tokens outside of it are chosen.
        positions: "original" (default) or "compact".
    """

    def __init__(
        self,
        tokens: Amount,
        layer: int = 2,
        outside: float = 0.1,
        by: By = "attention",
        outside_by: By = "uniform",
        positions: Positions = "original",
    ) -> None:
        self.tokens = check_tokens(tokens)
        self.layer = check_layer(layer)
        if not 0 <= outside < 1:
            raise ValueError(f"outside={outside!r}: must be a share in [0, 1)")
        for name, value in (("by", by), ("outside_by", outside_by)):
            if value not in get_args(By):
                raise ValueError(f"{name}={value!r}: must be one of {', '.join(get_args(By))}")
        self.outside, self.by, self.outside_by = float(outside), by, outside_by
        if self.layer < 1 and self._attends:
            raise ValueError("layer=0: attention is that of the layer before, give at least 1")
        self.positions = check_positions(positions)

    @property
    def name(self) -> str:
        return "hybrid"

    @property
    def layers(self) -> tuple[int, ...]:
        return (self.layer,)

    @property
    def watches(self) -> tuple[int, ...]:
        return (self.layer - 1,) if self._attends else ()

    @property
    def needs_request(self) -> bool:
        return True

    @property
    def _attends(self) -> bool:
        return self.by == "attention" or (bool(self.outside) and self.outside_by == "attention")

    def flops(self, config: Any, total: int, visual_L: Sequence[int], text: int) -> int:
        """As for `InnerLLM`; diversity as if it compared all tokens, which it does where the region is the image."""
        seen = visual_L[self.layer - 1] if self.layer else total
        rated = rating_flops(config, seen + text) if self._attends else 0
        compares = self.by == "diversity" or (bool(self.outside) and self.outside_by == "diversity")
        return rated + (2 * seen**2 * config.hidden_size if compares else 0)

    def keep(self, view: DecoderView) -> Tensor:
        assert view.requested_BS is not None  # the patch refuses a call without regions or keep
        inside_BS = view.living_BS & view.requested_BS.to(view.living_BS.device)
        outside_BS = view.living_BS & ~inside_BS
        sizes = torch.stack([inside_BS.sum(1), outside_BS.sum(1)], dim=1).tolist()
        counts = [self.split(wanted(self.tokens, all_of), *size) for all_of, size in zip(view.total_B, sizes)]
        kept_BS = self._chosen(view, self.by, inside_BS, [inside for inside, _ in counts])
        if not self.outside:
            return kept_BS
        return kept_BS | self._chosen(view, self.outside_by, outside_BS, [outside for _, outside in counts])

    def split(self, tokens: int, inside: int, outside: int) -> tuple[int, int]:
        """How many of `tokens` are for a region of so many tokens, and for so many outside of it."""
        if not self.outside:
            return min(tokens, inside), 0
        sprinkle = min(math.floor(tokens * self.outside + 0.5), max(0, tokens - 1), outside)
        chosen = min(tokens - sprinkle, inside)
        return chosen, min(tokens - chosen, outside)

    def _chosen(self, view: DecoderView, by: By, candidate_BS: Tensor, counts: Sequence[int]) -> Tensor:
        """Bool BS: so many of each row's candidates."""
        if by == "attention":
            score_BS = view.attention(self.layer - 1).mean(view.last_B[:, None], view.attended_BS)[:, 0]
            return best(score_BS, candidate_BS, counts).to(candidate_BS.device)
        if by == "uniform":
            return spread(candidate_BS, counts)
        kept_BS = torch.zeros_like(candidate_BS)
        for row, count in enumerate(counts):
            if count:
                token_VD = view.hidden_BSD[row, candidate_BS[row].to(view.hidden_BSD.device)]
                kept_BS[row, candidate_BS[row]] = diverse(token_VD, count).to(kept_BS.device)
        return kept_BS
