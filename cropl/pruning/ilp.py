"""ILP, inner-LLM pruning (CROP, section 3.4): the first K layers see every visual token, the rest only the region's."""

from __future__ import annotations

from torch import Tensor

from cropl.pruning.base import DecoderView, InnerLLM, Positions, check_layer, check_positions


class ILP(InnerLLM):
    """Keeps the visual tokens of the contextual region from decoder layer K on. Training-free.

    Args:
        layer: K, the number of layers that see every token; 0 prunes before the language model, L is dense.
        positions: "original" (default) or "compact". `ILP(layer=0, positions="compact")` is the paper's `prune`.
    """

    def __init__(self, layer: int = 2, positions: Positions = "original") -> None:
        self.layer = check_layer(layer)
        self.positions = check_positions(positions)

    @property
    def name(self) -> str:
        return "prune" if self.layer == 0 and self.positions == "compact" else "ilp"

    @property
    def layers(self) -> tuple[int, ...]:
        return (self.layer,)

    @property
    def needs_request(self) -> bool:
        return True

    def keep(self, view: DecoderView) -> Tensor:
        assert view.requested_BS is not None  # the patch refuses a call without regions or keep
        return view.requested_BS
