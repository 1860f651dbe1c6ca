"""A `PreLLM` method as the patch sees it: before layer 0 some visual tokens of a row become the compressed ones.

They are the first ones, or those whose places the method names. The others are dropped: the language model sees a
shorter image. So everything that is right for pruned models (masks, cache, decoding, beams) is right for compressed
ones.

Shapes: B rows, S positions, M surviving positions, V visual tokens of one row, D hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cropl.models.tower_view import Watch
from cropl.models.vlm import VLM
from cropl.pruning.base import DecoderView, InnerLLM, NotSupportedError, Positions, PreLLM
from cropl.pruning.tower import Reduced, Seen, TowerMethod


class Compression(InnerLLM):
    """Runs a `PreLLM` method before decoder layer 0, where hidden states are still the projected visual tokens.

    Args:
        method: what compresses.
        class_token: whether the vision tower has a class token. Where it has none, tokens that know their places keep
            their positions; all others are renumbered.

    Attributes:
        placed: whether the method has to know each row's token grid and region.
    """

    def __init__(self, method: PreLLM, class_token: bool = True) -> None:
        self.method = method
        self.placed = not isinstance(method, TowerMethod)
        self.positions: Positions = "compact" if self.placed or class_token else "original"
        self._seen = Seen()
        self._tokens: list[Tensor] = []

    @property
    def name(self) -> str:
        return self.method.name

    @property
    def layers(self) -> tuple[int, ...]:
        return (0,)

    def watch(self, vlm: VLM) -> Watch:
        """Look into the vision tower if the method wants it, until the watch is removed.

        Raises:
            NotSupportedError: the family does not show its tower.
        """
        if self.placed:
            return Watch([])
        try:
            return Watch([vlm.watch_tower(self._seen.add)], undo=self._seen.forget)
        except NotImplementedError as error:
            raise NotSupportedError(f"{type(self.method).__name__} is not supported here: {error}") from None

    def keep(self, view: DecoderView) -> Tensor:
        """The visual positions of each row that its compressed tokens take.

        Raises:
            ValueError: the method makes no token of an image, or more than there were.
        """
        visual_BS = (view.visual_BS & view.attended_BS).to(view.hidden_BSD.device)
        counts = visual_BS.sum(1).tolist()
        seen = [row for row, count in enumerate(counts) if count]
        reduced = self._reduced(view, visual_BS, seen) if seen else []
        taken = []
        for row, one in zip(seen, reduced, strict=True):
            made = len(one.token_MD)
            if not 0 < made <= counts[row]:
                raise ValueError(
                    f"{type(self.method).__name__} makes {made} tokens of the {counts[row]} of row {row}: it "
                    "must be at least one, and no more than the image has"
                )
            taken_V = torch.zeros(counts[row], dtype=torch.bool, device=visual_BS.device)
            taken_V[slice(made) if one.place_M is None else one.place_M.to(visual_BS.device)] = True
            taken.append(taken_V)
        self._tokens = [one.token_MD for one in reduced]
        return visual_BS.masked_scatter(visual_BS, torch.cat(taken)) if taken else visual_BS

    def _reduced(self, view: DecoderView, visual_BS: Tensor, seen: list[int]) -> list[Reduced]:
        tokens = [view.hidden_BSD[row][visual_BS[row]] for row in seen]
        if isinstance(self.method, TowerMethod):
            images = self._seen.find(list(zip(seen, tokens, strict=True)))
            reduced = [self.method.reduce_image(image) for image in images]
            if self.positions == "original" and any(one.place_M is None for one in reduced):
                raise NotSupportedError(
                    f"{type(self.method).__name__} does not say where its tokens stand, which a model whose vision "
                    "tower has no class token needs: let reduce_image give place_M"
                )
            return reduced
        grids, regions = zip(*view.places(seen))
        return [Reduced(token_MD) for token_MD in self.method.compress(tokens, grids, regions)]

    def rewrite(self, hidden_BMD: Tensor, visual_BM: Tensor) -> Tensor:
        if not self._tokens:
            return hidden_BMD
        tokens = torch.cat([token_MD.to(hidden_BMD.device, hidden_BMD.dtype) for token_MD in self._tokens])
        self._tokens = []
        return hidden_BMD.masked_scatter(visual_BM.to(hidden_BMD.device)[..., None], tokens)
