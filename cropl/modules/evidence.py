"""A second loss for tiny models: attention to a question's evidence is rewarded where its answer begins.

A tiny model finds by itself what to look at only after a long plateau. Real models are not trained like this.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from cropl.data.packing import Packed
from cropl.models.attention import LayerInput
from cropl.models.packed import first_positions
from cropl.models.vlm import VLM

# B rows, S length, T answers, H heads


class EvidenceLoss:
    """Minus the mean log attention of half of the heads to what they should look at.

    In the given layers this is the question's evidence; in the layer before them, the option whose letter is the answer
    looks at this letter; in the layer after them, the answer looks at this option.

    Args:
        vlm: the model.
        layers: consecutive 0-based decoder layers, with one more before and after them.

    Raises:
        ValueError: the model has no layer before or after them.
    """

    def __init__(self, vlm: VLM, layers: Sequence[int]) -> None:
        count = vlm.num_layers
        if not 1 <= min(layers) <= max(layers) <= count - 2:
            raise ValueError(
                f"evidence_layers {list(layers)}: needs one more decoder layer before and after them, and this model "
                f"has {count}; choose layers in 1..{count - 2}, or evidence_weight 0"
            )
        self.vlm, self.first, self.last = vlm, min(layers), max(layers)

    @property
    def layers(self) -> range:
        """The decoder layers whose input it needs."""
        return range(self.first - 1, self.last + 2)

    def __call__(
        self, layers: dict[int, LayerInput], packed: Packed, evidence: Sequence[Sequence[Tensor | None]]
    ) -> Tensor:
        """The loss of a batch; 0 where nothing is asked.

        Args:
            layers: what :func:`~cropl.models.attention.watched` saw of ``self.layers``.
            packed: the rows.
            evidence: of each row's questions, bool (2, V) among its visual tokens, or None.
        """
        row_T, position_T, turn_T = first_positions(packed)
        evidence_T2S = torch.zeros(
            len(row_T), 2, packed.input_ids_BS.shape[1], dtype=torch.bool, device=packed.input_ids_BS.device
        )
        visual_TS = self.vlm.visual_mask(packed.input_ids_BS)[row_T] & packed.mask_B1SS[row_T, 0, position_T]
        for t, (row, turn) in enumerate(zip(row_T.tolist(), turn_T.tolist())):
            known = evidence[row][turn]
            if known is not None:
                evidence_T2S[t][:, visual_TS[t]] = known.to(evidence_T2S.device)
        option_TS = announced(packed, row_T, position_T)
        option_T, place_T = option_TS.nonzero(as_tuple=True)
        letter_T2S = torch.zeros(
            len(option_T), 2, option_TS.shape[1], dtype=torch.bool, device=packed.input_ids_BS.device
        )
        letter_T2S[torch.arange(len(option_T)), :, place_T - 1] = True

        lost = []
        for index, layer in layers.items():
            if index < self.first:
                lost += self._lost(layer, packed, row_T[option_T], place_T, letter_T2S)
            else:
                wanted_T2S = option_TS[:, None].expand(-1, 2, -1) if index > self.last else evidence_T2S
                lost += self._lost(layer, packed, row_T, position_T, wanted_T2S)
        return torch.stack(lost).mean() if lost else evidence_T2S.new_zeros((), dtype=torch.float32)

    def _lost(
        self, layer: LayerInput, packed: Packed, row_T: Tensor, position_T: Tensor, wanted_T2S: Tensor
    ) -> list[Tensor]:
        """Minus the mean log attention of two quarters of the heads to ``wanted_T2S``; nothing if no row asks."""
        asked_T = wanted_T2S.any(2).all(1)
        if not asked_T.any():
            return []
        row_T, position_T = row_T[asked_T], position_T[asked_T]
        log_THS = layer.rows(row_T, position_T, packed.mask_B1SS[row_T, 0, position_T])
        heads = log_THS.shape[1] // 4
        guided_T2HS = log_THS[:, : 2 * heads].unflatten(1, (2, heads))
        seen_T2H = guided_T2HS.masked_fill(~wanted_T2S[asked_T][:, :, None], float("-inf")).logsumexp(-1)
        return [-seen_T2H.clamp(min=-20).mean()]


def announced(packed: Packed, row_T: Tensor, position_T: Tensor) -> Tensor:
    """Bool (T, S): the tokens behind the answer in its own prompt (in "A red B blue", A announces red)."""
    allowed_TS = packed.mask_B1SS[row_T, 0, position_T]
    said_TS = (packed.input_ids_BS[row_T] == packed.labels_BS[row_T, position_T][:, None]) & allowed_TS
    said_TS[torch.arange(len(row_T), device=said_TS.device), position_T] = False
    return said_TS.roll(1, dims=1) & allowed_TS
