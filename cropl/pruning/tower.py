"""What a method is that chooses or merges visual tokens by what the vision tower shows of an image.

Shapes: V visual tokens of one image, M those that it becomes, D the decoder's width.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cropl import tiling
from cropl.models.tower_view import TowerImage, TowerView
from cropl.pruning.base import PreLLM, PruningError
from cropl.pruning.select import Amount, check_tokens, wanted


@dataclass(frozen=True)
class Reduced:
    """The visual tokens that an image becomes.

    Attributes:
        token_MD: in the order in which they enter the language model.
        place_M: long, ascending: the visual token that each of them stands for; None where some stand for none.
    """

    token_MD: Tensor
    place_M: Tensor | None = None


class TowerMethod(PreLLM):
    """A method that looks into the vision tower; it needs no regions.

    Inside `pruned(...)` the tower is watched: images that run through it there, in the forward itself or in
    `encode_images` before, are remembered until other images follow a forward.

    Args:
        tokens: how many an image becomes: a count, or a share in (0, 1] of its own tokens. Where the model cuts an
            image into crops, each crop gets an equal part of them.
    """

    needs_regions = False

    def __init__(self, tokens: Amount) -> None:
        self.tokens = check_tokens(tokens)

    @abstractmethod
    def reduce(self, view: TowerView, count: int) -> Reduced:
        """One image, or one crop of it, to `count` tokens, from 1 to V."""

    def view_flops(self, config: Any, total: int, count: int) -> int:
        """FLOPs of reducing one view of `total` visual tokens to `count`, see `PreLLM.flops`."""
        return 0

    def count(self, grid: tiling.Tokens) -> int:
        """As for `PreLLM`.

        Raises:
            ValueError: there are fewer tokens than the method is to keep, or it is to keep fewer than there are crops.
        """
        count = wanted(self.tokens, grid.num_tokens)
        self._shares(count, grid.crops if isinstance(grid, tiling.TokenMap) else 1)
        return count

    def flops(self, grid: tiling.Tokens, config: Any) -> int:
        """As for `PreLLM`: each crop is looked at by itself, whole, whatever unpadding leaves of it."""
        if not isinstance(grid, tiling.TokenMap):
            return self.view_flops(config, grid.num_tokens, self.count(grid))
        total = (config.vision_config.image_size // config.vision_config.patch_size) ** 2
        return sum(self.view_flops(config, total, count) for count in self._shares(self.count(grid), grid.crops))

    def reduce_image(self, image: TowerImage) -> Reduced:
        """A whole image: its crops one after the other.

        Raises:
            ValueError: there are fewer tokens than the method is to keep, or than crops.
        """
        counts = self._shares(wanted(self.tokens, len(image.token_VD)), len(image.views))
        for view, count in zip(image.views, counts, strict=True):
            if count > len(view.token_VD):
                raise ValueError(f"tokens={self.tokens}: {count} for a crop of {len(view.token_VD)} visual tokens")
        parts = [self.reduce(view, count) for view, count in zip(image.views, counts, strict=True)]
        return parts[0] if len(parts) == 1 else Reduced(torch.cat([part.token_MD for part in parts]))

    def _shares(self, total: int, crops: int) -> list[int]:
        """`total` tokens in equal parts, the first ones one larger where that does not come out even."""
        if total < crops:
            raise ValueError(f"tokens={self.tokens}: fewer than the {crops} crops of an image")
        return [total // crops + (crop < total % crops) for crop in range(crops)]

    def compress(
        self, features: Sequence[Tensor], grids: Sequence[tiling.Tokens], regions: Sequence[tiling.Regions]
    ) -> list[Tensor]:
        """Never: visual tokens alone do not tell what the tower saw.

        Raises:
            PruningError: always.
        """
        raise PruningError(f"{type(self).__name__} looks into the vision tower: use it in pruned(...), or reduce_image")


def looking_flops(config: Any, total: int) -> int:
    """FLOPs of the tower's attention that decides about one view of `total` visual tokens.

    Of one query in a tower with a class token, else of all queries.
    """
    vision = config.vision_config
    if hasattr(vision, "spatial_merge_size"):  # no class token: patches among one another
        return int(2 * (total * vision.spatial_merge_size**2) ** 2 * tower_width(config))
    return 2 * (total + 1) * tower_width(config)


def tower_width(config: Any) -> int:
    """Width of the tower's layers."""
    vision = config.vision_config
    return int(getattr(vision, "embed_dim", None) or vision.hidden_size)


class Seen:
    """The images that ran through a watched tower: those since the last forward that used some."""

    def __init__(self) -> None:
        self._images: list[TowerImage] = []
        self._used = False

    def add(self, image: TowerImage) -> None:
        """Remember one more; the first behind a forward replaces all before."""
        if self._used:
            self._images, self._used = [], False
        self._images.append(image)

    def forget(self) -> None:
        """Let go of all of them."""
        self._images, self._used = [], False

    def find(self, rows: Sequence[tuple[int, Tensor]]) -> list[TowerImage]:
        """The image of each (row, its visual tokens (V, D)), known by these very values.

        Raises:
            PruningError: a row's image did not run through the tower in this context.
        """
        self._used = True
        found: list[TowerImage] = []
        start = 0  # rows mostly come in the order of the images
        for row, token_VD in rows:
            order = [*range(start, len(self._images)), *range(start)]
            match = next((i for i in order if _same(self._images[i].token_VD, token_VD)), None)
            if match is None:
                raise PruningError(
                    f"the image of row {row} did not run through the vision tower in this pruned(...) context, so what "
                    "the tower saw is not known: call encode_images inside the context, or give pixel_values; one "
                    "image per row is supported"
                )
            found.append(self._images[match])
            start = match + 1
        return found


def _same(seen_VD: Tensor, token_VD: Tensor) -> bool:
    return seen_VD.shape == token_VD.shape and torch.equal(seen_VD.to(token_VD), token_VD)
