"""What a pruning method is: given these tensors, which tokens stay.

A method only decides. `cropl.pruning.patch` does everything else once for all methods: gathering, masks, positions, the
key-value cache, decoding. A new method is one class here or in the user's own package.

Shapes: B rows, S sequence, D hidden width, V visual tokens of one image, M kept tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from cropl.models.attention import LayerInput
from cropl.tiling import Regions, Tokens

Positions = Literal["original", "compact"]
"""Positions of surviving tokens: their own, or renumbered as if the dropped tokens had never been there."""


class PruningError(ValueError):
    """A pruned run that cannot be done as asked; the message names the reason and the remedy."""


class NotSupportedError(PruningError):
    """A feature of `transformers` that pruning does not work with."""


@dataclass(frozen=True)
class DecoderView:
    """What an `InnerLLM` method sees in the prefill, before a decoder layer. The S positions are those that still live.

    Attributes:
        layer: the decoder layer about to run, 0-based.
        hidden_BSD: hidden states entering that layer.
        visual_BS: bool, the visual tokens.
        attended_BS: bool, False on padding.
        requested_BS: bool, the positions that the caller's regions (or `keep`) leave; None where neither was given.
        attention: by layer, what its attention was given: of those in `InnerLLM.watches` that ran since tokens were
            last dropped, and of `layer` to come.
        total_B: visual tokens of each row before any was dropped.
        placed: for methods that compress, one (token grid, region) per row of the batch; None for rows without an
            image or without a region.
    """

    layer: int
    hidden_BSD: Tensor
    visual_BS: Tensor
    attended_BS: Tensor
    requested_BS: Tensor | None
    attention: Callable[[int], LayerInput]
    total_B: Sequence[int] = ()
    placed: Sequence[tuple[Tokens, Regions] | None] | None = None

    @property
    def living_BS(self) -> Tensor:
        """Bool: the visual tokens that are no padding."""
        return self.visual_BS & self.attended_BS

    @property
    def last_B(self) -> Tensor:
        """Long: where each row's last token stands, the one that the answer begins behind."""
        position_S = torch.arange(self.attended_BS.shape[1], device=self.attended_BS.device)
        return (self.attended_BS * position_S).amax(1)

    def places(self, rows: Sequence[int]) -> list[tuple[Tokens, Regions]]:
        """Token grid and region of these rows.

        Raises:
            ValueError: the caller gave none.
        """
        found = [self.placed[row] if self.placed is not None else None for row in rows]
        missing = [row for row, place in zip(rows, found, strict=True) if place is None]
        if missing:
            raise ValueError(f"no region for row {missing[0]}: give regions, one per row with an image")
        return [place for place in found if place is not None]


class InnerLLM(ABC):
    """A method that drops visual tokens inside the language model, before chosen decoder layers."""

    positions: Positions = "original"

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the method, lower case: in messages, and in the rows of methods of this package."""

    @property
    @abstractmethod
    def layers(self) -> tuple[int, ...]:
        """Ascending decoder layers before which `keep` is asked, in 0..L; a layer of L never comes."""

    @property
    def watches(self) -> tuple[int, ...]:
        """Decoder layers whose attention `keep` looks at when they have run."""
        return ()

    @property
    def needs_request(self) -> bool:
        """Whether the caller has to give regions or `keep`."""
        return False

    @abstractmethod
    def keep(self, view: DecoderView) -> Tensor:
        """Bool BS: the positions that stay. Text stays and padding goes, whatever this says of them.

        A row's answer must not depend on the other rows of its batch.
        """

    def flops(self, config: Any, total: int, visual_L: Sequence[int], text: int) -> int:
        """FLOPs that deciding takes for one row, 2 per multiply-add, on top of what the layers do themselves.

        Args:
            config: of the decoder.
            total: visual tokens of the row, before any was dropped.
            visual_L: those that each layer saw.
            text: the row's other tokens.
        """
        return 0

    def rewrite(self, hidden_BMD: Tensor, visual_BM: Tensor) -> Tensor:
        """The survivors' hidden states as they go on, after each `keep`; for methods that merge what they drop."""
        return hidden_BMD


class PreLLM(ABC):
    """A method that replaces an image's visual tokens before the language model sees them."""

    needs_regions: bool = True
    """Whether the caller has to give regions."""

    @property
    @abstractmethod
    def name(self) -> str:
        """Name of the method, lower case: in messages, and in the rows of methods of this package."""

    @abstractmethod
    def count(self, grid: Tokens) -> int:
        """M: tokens that an image of this grid becomes."""

    def flops(self, grid: Tokens, config: Any) -> int:
        """FLOPs that compressing one image takes, 2 per multiply-add; `config` is the whole model's."""
        return 0

    @abstractmethod
    def compress(self, features: Sequence[Tensor], grids: Sequence[Tokens], regions: Sequence[Regions]) -> list[Tensor]:
        """Projected visual tokens `(V_i, D)` of each image to the `(M_i, D)` tokens that enter the language model."""


def check_layer(layer: int) -> int:
    """`layer` if it can be a number of full layers K; the upper end is checked against the model by `pruned`."""
    if isinstance(layer, bool) or not isinstance(layer, int) or layer < 0:
        raise ValueError(f"layer={layer!r}: must be an integer >= 0, the number of decoder layers that see every token")
    return layer


def check_positions(positions: str) -> Positions:
    """`positions` if it is one of the two known ones."""
    if positions == "original":
        return "original"
    if positions == "compact":
        return "compact"
    raise ValueError(f"positions={positions!r}: must be 'original' or 'compact'")
