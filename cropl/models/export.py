"""Writes a model with its processor as a plain ``transformers`` folder that ``from_pretrained`` loads, with a card."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import StateDictOptions, get_model_state_dict
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel

from cropl.data.aside import written_aside
from cropl.models.card import Card
from cropl.models.lora import plain_state
from cropl.models.vlm import VLM

SYSTEM_KEY = "cropl_system"
"""In a checkpoint's config: whether LLaVA's prompts begin with the system sentence."""
MAX_PIXELS_KEY = "cropl_max_pixels"
"""In a checkpoint's config: the greatest area of a picture that Qwen2-VL was trained to see."""


def write_checkpoint(
    vlm: VLM,
    folder: str | Path,
    dtype: str | torch.dtype | None = None,
    card: Card | None = None,
    beside: Callable[[Path], Any] | None = None,
) -> Path:
    """Save model, tokenizer, image processor and a model card, wherever they were loaded from, as they are now.

    LoRA adapters are merged, and weights that are sharded over processes are gathered: all processes call this, and the
    first one writes. The folder is there whole or not at all.

    Args:
        vlm: the model with its processor; it stays as it is.
        folder: made if it is not there; an earlier checkpoint is replaced.
        dtype: the weights' on disk, such as ``float16``; the model in memory keeps its own.
        card: what ``README.md`` says of the training.
        beside: writes further files into the folder that it is given; what it writes is part of the whole.

    Raises:
        ValueError: at ``folder`` is something else than a checkpoint, which would be lost.
    """
    folder = Path(folder)
    if not folder.name:
        folder = folder.absolute()
    check_replaceable(folder)
    plain = plain_model(vlm, dtype)
    if plain is None:
        return folder
    with written_aside(folder) as aside:
        plain.save_pretrained(aside)
        vlm.save_processor(aside)
        if beside is not None:
            beside(aside)
        (aside / "README.md").write_text((card or Card()).text(plain.config), encoding="utf-8")
    return folder


def check_replaceable(folder: Path) -> None:
    """ValueError unless ``folder`` is new, empty, or an earlier checkpoint."""
    if folder.is_file() or (folder.is_dir() and any(folder.iterdir()) and not (folder / "config.json").is_file()):
        raise ValueError(f"{folder} is there and is no checkpoint: give a new folder to export into")


def plain_model(vlm: VLM, dtype: str | torch.dtype | None = None) -> PreTrainedModel | None:
    """The model as ``transformers`` knows it: adapters merged, whole weights, on the CPU if they were sharded.

    All processes call this; None on all but the first. Weights that need no change are shared with the model in memory.
    """
    state = full_state(vlm.model)
    if dist.is_available() and dist.is_initialized() and dist.get_rank():
        return None
    config = copy.deepcopy(vlm.model.config)
    if (system := getattr(vlm, "system", None)) is not None:
        setattr(config, SYSTEM_KEY, bool(system))
    if vlm.max_pixels is not None:
        setattr(config, MAX_PIXELS_KEY, vlm.max_pixels)
    made: Any = vlm.model_class
    with torch.device("meta"):
        plain: PreTrainedModel = made(config)
    wanted = getattr(torch, dtype) if isinstance(dtype, str) else dtype
    plain.load_state_dict(plain_state(vlm.model, state, wanted), strict=False, assign=True)
    plain.tie_weights()
    for name, buffer in vlm.model.named_buffers():  # those that no checkpoint holds
        parent, _, last = name.rpartition(".")
        if (owner := _submodule(plain, parent)) is not None and last in owner._buffers:
            owner._buffers[last] = buffer.detach()
    if missing := [name for name, value in plain.named_parameters() if value.is_meta]:
        raise AssertionError(f"weights {missing[:3]} of {type(plain).__name__} were not gathered")
    plain.generation_config = copy.deepcopy(vlm.model.generation_config)
    if wanted is not None:
        plain = plain.to(wanted)  # type: ignore[arg-type]  # transformers' own signature
    return plain.eval()


def full_state(model: nn.Module) -> dict[str, Tensor]:
    """The whole weights of a model; of a sharded one, on the CPU of the first process alone. All processes call it."""
    if any(isinstance(value, DTensor) for value in model.parameters()):
        options = StateDictOptions(full_state_dict=True, cpu_offload=True)
        gathered: dict[str, Any] = get_model_state_dict(model, options=options)
        return gathered
    return model.state_dict()


def _submodule(model: nn.Module, name: str) -> nn.Module | None:
    try:
        return model.get_submodule(name)
    except AttributeError:  # an adapter's
        return None
