"""A schedule: several methods one after the other, such as the region before layer 2 and fewer of its tokens later."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from cropl.pruning.base import DecoderView, InnerLLM


class Schedule(InnerLLM):
    """Runs methods that drop tokens at decoder layers of their own, each on what those before it left.

    `Schedule([ILP(2), FastV(32, 8)])` drops what lies outside the region before layer 2, and keeps the best 32 of the
    rest before layer 8. Counts and shares are of the image's tokens before anything was dropped; a method that ranks
    and wants more than are left keeps them all.

    Args:
        methods: in the order of their layers, no two of which may be equal; all with the same `positions`.
    """

    def __init__(self, methods: Sequence[InnerLLM]) -> None:
        for method in methods:
            if not isinstance(method, InnerLLM):
                kind = method if isinstance(method, str) else type(method).__name__
                raise ValueError(f"methods: {kind} is no method that prunes inside the language model")
        acting = [method for method in methods if method.layers]
        if not acting:
            raise ValueError("methods: give at least one that prunes, such as ILP(layer=2)")
        layers = [layer for method in acting for layer in method.layers]
        lasts = [method.layers[-1] for method in acting]
        if len(set(layers)) < len(layers) or lasts != sorted(lasts):
            raise ValueError(
                f"methods: layers {', '.join(str(method.layers) for method in acting)} must ascend, each of them one "
                "method's alone"
            )
        if len({method.positions for method in acting}) > 1:
            told = ", ".join(f"{method.name} {method.positions}" for method in acting)
            raise ValueError(f"methods: positions must agree, and are {told}")
        self.methods = tuple(acting)
        self.positions = acting[0].positions
        self._at = {layer: method for method in acting for layer in method.layers}
        self._asked = acting[0]

    @property
    def name(self) -> str:
        return self.methods[0].name if len(self.methods) == 1 else "schedule"

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(sorted(self._at))

    @property
    def watches(self) -> tuple[int, ...]:
        return tuple(sorted({layer for method in self.methods for layer in method.watches}))

    @property
    def needs_request(self) -> bool:
        return any(method.needs_request for method in self.methods)

    def flops(self, config: Any, total: int, visual_L: Sequence[int], text: int) -> int:
        return sum(method.flops(config, total, visual_L, text) for method in self.methods)

    def keep(self, view: DecoderView) -> Tensor:
        self._asked = self._at[view.layer]
        return self._asked.keep(view)

    def rewrite(self, hidden_BMD: Tensor, visual_BM: Tensor) -> Tensor:
        return self._asked.rewrite(hidden_BMD, visual_BM)
