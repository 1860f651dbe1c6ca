"""A `PreLLM` method as the patch sees it: before layer 0 the first visual tokens of a row become the compressed ones.

The others are dropped, and positions are renumbered: the language model sees a shorter image. So everything that is
right for pruned models (masks, cache, decoding, beams) is right for compressed ones.

Shapes: B rows, S positions, M surviving positions, V visual tokens of one row, D hidden width.
"""

from __future__ import annotations

import torch
from torch import Tensor

from cropl.pruning.base import DecoderView, InnerLLM, Positions, PreLLM


class Compression(InnerLLM):
    """Runs a `PreLLM` method before decoder layer 0, where hidden states are still the projected visual tokens.

    Args:
        method: what compresses.
    """

    positions: Positions = "compact"

    def __init__(self, method: PreLLM) -> None:
        self.method = method
        self._tokens: list[Tensor] = []

    @property
    def name(self) -> str:
        return self.method.name

    @property
    def layers(self) -> tuple[int, ...]:
        return (0,)

    def keep(self, view: DecoderView) -> Tensor:
        """The first M visual positions of each row, for its M compressed tokens.

        Raises:
            ValueError: the method makes no token of an image, or more than there were.
        """
        visual_BS = view.visual_BS & view.attended_BS
        counts = visual_BS.sum(1).tolist()
        seen = [row for row, count in enumerate(counts) if count]
        compressed: list[Tensor] = []
        if seen:
            hidden_BSD = view.hidden_BSD
            visual_BS = visual_BS.to(hidden_BSD.device)
            grids, regions = zip(*view.places(seen))
            compressed = self.method.compress([hidden_BSD[row][visual_BS[row]] for row in seen], grids, regions)
        for row, tokens_MD in zip(seen, compressed, strict=True):
            if not 0 < len(tokens_MD) <= counts[row]:
                raise ValueError(
                    f"{type(self.method).__name__} makes {len(tokens_MD)} tokens of the {counts[row]} of row {row}: it "
                    "must be at least one, and no more than the image has"
                )
        self._tokens = compressed
        made = dict(zip(seen, map(len, compressed)))
        made_B1 = torch.tensor([made.get(row, 0) for row in range(len(counts))], device=visual_BS.device)[:, None]
        return visual_BS & (visual_BS.cumsum(1) <= made_B1)

    def rewrite(self, hidden_BMD: Tensor, visual_BM: Tensor) -> Tensor:
        if not self._tokens:
            return hidden_BMD
        tokens = torch.cat(self._tokens).to(hidden_BMD.dtype)
        self._tokens = []
        return hidden_BMD.masked_scatter(visual_BM.to(hidden_BMD.device)[..., None], tokens)
