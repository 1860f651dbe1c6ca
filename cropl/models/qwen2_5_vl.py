"""Qwen2.5-VL (`Qwen2_5_VLForConditionalGeneration`): as Qwen2-VL, with a tower whose layers mostly look at windows.

Processor, template, merged tokens and their positions are Qwen2-VL's. The tower sorts patches by window and sorts its
tokens back, so windows are its own business.
"""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor
from transformers import PreTrainedModel, Qwen2_5_VLForConditionalGeneration
from transformers.vision_utils import get_vision_window_index

from cropl.models.qwen2_vl import Qwen2VLVLM
from cropl.models.tower_view import Record, Watch, watch_merged


class Qwen2_5_VLVLM(Qwen2VLVLM):
    """Qwen2.5-VL."""

    model_class: ClassVar[type[PreTrainedModel]] = Qwen2_5_VLForConditionalGeneration

    def watch_tower(self, record: Record) -> Watch:
        tower: Any = self.tower

        def order(grid_thw: Tensor) -> Tensor:
            index, _ = get_vision_window_index(grid_thw, self.merge, tower.window_size, tower.patch_size)
            return index.argsort()

        # Attention inside windows of different sizes cannot be compared: of the last block that looks at whole images.
        return watch_merged(tower, tower.blocks[max(tower.fullatt_block_indexes)], self.merge, record, order)
