"""A pruning method."""

from __future__ import annotations

import torch

from cropl.pruning.base import DecoderView, InnerLLM, check_layer


class Checkerboard(InnerLLM):
    """Keeps every other visual token from decoder layer K on.

    Args:
        layer: K, the number of layers that see every token.
    """

    def __init__(self, layer: int = 2) -> None:
        self.layer = check_layer(layer)

    @property
    def name(self) -> str:
        return "checkerboard"

    @property
    def layers(self) -> tuple[int, ...]:
        return (self.layer,)

    def keep(self, view: DecoderView) -> torch.Tensor:
        order_BS = view.visual_BS.cumsum(1)
        return view.attended_BS & (~view.visual_BS | (order_BS % 2 == 1))
