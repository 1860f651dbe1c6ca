"""Dense: nothing is pruned. The control that every table needs, through the same code path as the methods."""

from __future__ import annotations

from torch import Tensor

from cropl.pruning.base import DecoderView, InnerLLM


class Dense(InnerLLM):
    """Keeps every token; regions and `keep` are ignored, so that it can stand in for any method."""

    @property
    def name(self) -> str:
        return "dense"

    @property
    def layers(self) -> tuple[int, ...]:
        return ()

    def keep(self, view: DecoderView) -> Tensor:
        return view.attended_BS
