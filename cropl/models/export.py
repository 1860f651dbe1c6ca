"""Writes a model with its processor as a plain ``transformers`` folder that ``from_pretrained`` loads."""

from __future__ import annotations

import copy
from pathlib import Path

import torch

from cropl.models.vlm import VLM


def write_checkpoint(vlm: VLM, folder: str | Path, dtype: str | torch.dtype | None = None) -> Path:
    """Save model, tokenizer and image processor, wherever they were loaded from, as they are now.

    Args:
        vlm: the model with its processor.
        folder: made if it is not there; files of the same names are overwritten.
        dtype: the weights' on disk, such as ``float16``; the model in memory keeps its own.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    model = vlm.model
    if dtype is not None:
        wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        model = copy.deepcopy(model).to(wanted)
    model.save_pretrained(folder)
    vlm.save_processor(folder)
    return folder
