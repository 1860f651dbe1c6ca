"""Batches of any family with a row of text alone among them, and the same rows one by one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cropl.grid import Region
from cropl.models.vlm import VLM
from tests.families import QUESTIONS, pictures

TEXT = [11, 5, 23, 7]
PLACES = (0, 1, 3)
"""Where the pictures' rows stand; the row of text is the third."""
REGIONS = [Region(2, 3, 4, 4), Region(0, 1, 7, 2), None, Region(2, 2, 4, 5)]


def request(vlm: VLM, regions: Sequence[Region | None] = REGIONS) -> dict[str, Any]:
    """`regions` and `grids` for `pruned`; a row without a picture has any grid."""
    found = list(vlm.inputs(pictures(), QUESTIONS).grids)
    return {"regions": list(regions), "grids": [*found[:2], found[0], found[2]]}


def together(vlm: VLM, side: str = "left") -> dict[str, Any]:
    """Arguments of a forward: two pictures' rows, one of text, and another picture's."""
    kwargs = vlm.inputs(pictures(), QUESTIONS).kwargs()
    pad = int(vlm.tokenizer.pad_token_id)
    rows = [ids[mask.bool()] for ids, mask in zip(kwargs["input_ids"], kwargs["attention_mask"], strict=True)]
    rows.insert(2, torch.tensor(TEXT))
    width = max(map(len, rows))
    kwargs["input_ids"] = torch.stack([_padded(row, width, pad, side) for row in rows])
    kwargs["attention_mask"] = torch.stack([_padded(torch.ones_like(row), width, 0, side) for row in rows])
    if "mm_token_type_ids" in kwargs:
        kwargs["mm_token_type_ids"] = vlm.visual_mask(kwargs["input_ids"]).int()
    return kwargs


def alone(vlm: VLM, row: int) -> dict[str, Any]:
    """One of these rows by itself, without padding."""
    if row not in PLACES:
        return {"input_ids": torch.tensor([TEXT]), "attention_mask": torch.ones(1, len(TEXT), dtype=torch.long)}
    number = PLACES.index(row)
    return vlm.inputs([pictures()[number]], [QUESTIONS[number]]).kwargs()


def longer(kwargs: dict[str, Any], token_BT: Tensor) -> dict[str, Any]:
    """The same prompts with these tokens behind each."""
    more = {"input_ids": token_BT, "attention_mask": torch.ones_like(token_BT)}
    if "mm_token_type_ids" in kwargs:
        more["mm_token_type_ids"] = torch.zeros_like(token_BT, dtype=torch.int32)
    return kwargs | {key: torch.cat([kwargs[key], value], dim=1) for key, value in more.items()}


def _padded(row_S: Tensor, width: int, value: int, side: str) -> Tensor:
    fill = row_S.new_full((width - len(row_S),), value)
    return torch.cat([fill, row_S] if side == "left" else [row_S, fill])
