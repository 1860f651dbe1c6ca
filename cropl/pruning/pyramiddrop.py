"""PyramidDrop (Xing et al., CVPR 2025), without training: fewer visual tokens at every stage."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from cropl.budget import Meaning
from cropl.pruning.base import DecoderView, InnerLLM, Positions, check_layer, check_positions
from cropl.pruning.select import average, best, bisected, rating_flops, scaled_layers

if TYPE_CHECKING:
    from typing_extensions import Self


class PyramidDrop(InnerLLM):
    """Before each stage's layer, ranks by the attention that this layer would give from the last prompt token.

    The query and key projections are those of the layer to come, behind its input norm; averaged over heads.

    Args:
        ratio: share of the tokens that stay from one stage to the next: stage s leaves int(N ratio^s) of an image's N.
            On a 32-layer model with layers (2, 8, 16), 0.5596, 0.4197 and 0.1916 average 192, 128 and 64 of 576.
        layers: of the stages, ascending; published are (8, 16, 24) with 0.5, and (2, 8, 16) for tight budgets.
        positions: "compact" (default, as published) or "original".
    """

    def __init__(
        self, ratio: float = 0.5, layers: Sequence[int] = (8, 16, 24), positions: Positions = "compact"
    ) -> None:
        if not 0 < ratio <= 1:
            raise ValueError(f"ratio={ratio!r}: must be a share in (0, 1]")
        if not layers or list(layers) != sorted(set(layers)):
            raise ValueError(f"layers={tuple(layers)}: give ascending decoder layers")
        self.ratio = float(ratio)
        self._layers = tuple(check_layer(layer) for layer in layers)
        self.positions = check_positions(positions)

    @classmethod
    def for_budget(
        cls,
        tokens: float,
        total: float,
        meaning: Meaning,
        num_layers: int,
        layers: Sequence[int] | None = None,
        **options: Any,
    ) -> Self:
        """The method whose ratio meets a budget of `tokens` out of `total`.

        Args:
            tokens: mean tokens behind the last stage ("post_prune"), or per layer ("layer_average").
            total: visual tokens of an image, or their mean.
            meaning: of `tokens`.
            num_layers: L.
            layers: of the stages; None is (2, 8, 16), published for 32 layers, in proportion.
            options: further arguments of the class.

        Raises:
            InfeasibleBudget: the layers in front of the first stage take more on their own.
        """
        layers = scaled_layers((2, 8, 16), num_layers) if layers is None else tuple(layers)

        def met(ratio: float) -> float:
            stages = [total * ratio ** (stage + 1) for stage in range(len(layers))]
            return stages[-1] if meaning == "post_prune" else average(stages, layers, total, num_layers)

        return cls(bisected(met, tokens), layers, **options)

    @property
    def name(self) -> str:
        return "pyramiddrop"

    @property
    def layers(self) -> tuple[int, ...]:
        return self._layers

    def flops(self, config: Any, total: int, visual_L: Sequence[int], text: int) -> int:
        # A stage rates what the layer before it saw.
        seen = [visual_L[layer - 1] if layer else total for layer in self._layers if layer < len(visual_L)]
        return sum(rating_flops(config, visual + text, keys=True) for visual in seen)

    def keep(self, view: DecoderView) -> Tensor:
        share = self.ratio ** (self._layers.index(view.layer) + 1)
        score_BS = view.attention(view.layer).mean(view.last_B[:, None], view.attended_BS)[:, 0]
        return best(score_BS, view.living_BS, [max(1, int(total * share)) for total in view.total_B])
