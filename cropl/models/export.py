"""Writes a model as a plain ``transformers`` folder that ``from_pretrained`` loads."""

from __future__ import annotations

import copy
import shutil
from pathlib import Path
from typing import Any

import torch

_WEIGHTS = (".safetensors", ".bin", ".pt", ".index.json")


def write_checkpoint(
    model: Any, folder: str | Path, source: str | Path, tokenizer: Any = None, dtype: str | torch.dtype | None = None
) -> Path:
    """Save ``model`` to ``folder``, with the tokenizer and processor files of ``source``.

    Args:
        model: a ``transformers`` model.
        folder: made if it is not there; files of the same names are overwritten.
        source: the folder that the model came from; its files other than weights and config are copied. A hub name has
            none here: then give ``tokenizer`` and save the processor yourself.
        tokenizer: saved instead of the source's (it has grown).
        dtype: the weights' on disk, such as ``float16``; the model in memory keeps its own.
    """
    folder, source = Path(folder), Path(source)
    folder.mkdir(parents=True, exist_ok=True)
    if source.is_dir() and source.resolve() != folder.resolve():
        for file in source.iterdir():
            if file.is_file() and not file.name.endswith(_WEIGHTS) and file.name != "config.json":
                shutil.copyfile(file, folder / file.name)
    if dtype is not None:
        wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
        model = copy.deepcopy(model).to(wanted)
    model.save_pretrained(folder)
    if tokenizer is not None:
        tokenizer.save_pretrained(folder)
    return folder
