"""Random tokens: the control that a method for choosing tokens has to beat."""

from __future__ import annotations

import operator
from collections.abc import Sequence

import torch
from torch import Tensor

from cropl.pruning.base import DecoderView, InnerLLM, Positions, check_layer, check_positions
from cropl.pruning.select import Amount, check_tokens, wanted


class RandomTokens(InnerLLM):
    """Keeps a uniformly random subset of each row's visual tokens from decoder layer K on; regions are ignored.

    The subset depends on the seed and on how many visual tokens the row has, never on the batch around it, so that a
    batch gives what its rows give one by one.

    Args:
        tokens: how many stay: a count, or a share in (0, 1] of the row's own tokens (rounded, at least one).
        seed: one seed for all rows (they then keep the same grid positions), or one per row for independent draws;
            rows repeat as regions do, by rows / len(seed).
        layer: K, the number of layers that see every token.
        positions: "original" (default) or "compact".
    """

    def __init__(
        self,
        tokens: Amount,
        seed: int | Sequence[int] = 0,
        layer: int = 2,
        positions: Positions = "original",
    ) -> None:
        self.tokens = check_tokens(tokens)
        self.seeds = [seed] if isinstance(seed, int) else [operator.index(value) for value in seed]
        if not self.seeds:
            raise ValueError("seed=[]: give one seed, or one per row")
        self.layer = check_layer(layer)
        self.positions = check_positions(positions)

    @property
    def name(self) -> str:
        return "random"

    @property
    def layers(self) -> tuple[int, ...]:
        return (self.layer,)

    def keep(self, view: DecoderView) -> Tensor:
        counts = view.living_BS.sum(1).tolist()
        rows = len(counts)
        if rows % len(self.seeds):
            raise ValueError(f"{len(self.seeds)} seeds for {rows} rows: give one seed, or one per row")
        seeds = [self.seeds[row * len(self.seeds) // rows] for row in range(rows)]
        wishes = [wanted(self.tokens, total) for total in view.total_B]
        chosen = [self._draw(seed, count, wish) for seed, count, wish in zip(seeds, counts, wishes, strict=True)]
        keep_BS = view.attended_BS.clone()
        keep_BS[view.living_BS] = torch.cat(chosen).to(keep_BS.device)
        return keep_BS

    def _draw(self, seed: int, count: int, wish: int) -> Tensor:
        """Bool (count,): the kept ones. Drawn on the CPU, so that every device keeps the same."""
        generator = torch.Generator().manual_seed(seed)
        keep_V = torch.zeros(count, dtype=torch.bool)
        keep_V[torch.randperm(count, generator=generator)[:wish]] = True
        return keep_V
