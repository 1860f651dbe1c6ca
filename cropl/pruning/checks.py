"""What `pruned` refuses at the door, so that nothing goes silently wrong inside."""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers.models.llama.modeling_llama import LlamaModel
from transformers.models.mistral.modeling_mistral import MistralModel
from transformers.models.qwen2.modeling_qwen2 import Qwen2Model
from transformers.models.qwen2_5_vl.modeling_qwen2_5_vl import Qwen2_5_VLTextModel
from transformers.models.qwen2_vl.modeling_qwen2_vl import Qwen2VLTextModel

from cropl.models.vlm import VLM
from cropl.pruning.base import InnerLLM, NotSupportedError, PreLLM
from cropl.pruning.masks import check_kernel
from cropl.pruning.tower import TowerMethod

_DECODERS = (LlamaModel, MistralModel, Qwen2Model, Qwen2VLTextModel, Qwen2_5_VLTextModel)
"""Decoders whose layers take hidden states first, and mask, positions and cache by the same names."""


def check_model(vlm: VLM) -> None:
    """Raise `NotSupportedError` unless hooks can prune this model."""
    decoder = vlm.decoder
    if not vlm.prunable or not isinstance(decoder, _DECODERS):
        supported = ", ".join(kind.__name__ for kind in _DECODERS)
        raise NotSupportedError(
            f"{type(vlm.model).__name__} with a {type(decoder).__name__} cannot be pruned; "
            f"supported: families that say so (cropl.models), with one of {supported}"
        )
    sliding = "sliding_attention" in (getattr(decoder.config, "layer_types", None) or ())
    if sliding or (isinstance(decoder, MistralModel) and decoder.config.sliding_window is not None):
        raise NotSupportedError("sliding-window attention is not supported by pruning: its layers forget old tokens")
    modules: list[nn.Module] = [vlm.model, vlm.base, decoder, *decoder.layers]
    if any(getattr(module, "_compiled_call_impl", None) is not None for module in modules):
        raise NotSupportedError("a compiled model does not see new hooks: prune the model before or without compile()")
    check_kernel(decoder.config)


def check_method(method: Any, num_layers: int, requested: bool) -> None:
    """Raise ValueError unless the method fits a decoder of `num_layers` and has what it needs."""
    if isinstance(method, PreLLM):
        if method.needs_regions and not requested:
            raise ValueError(f"{type(method).__name__} needs regions: give one per row")
        if isinstance(method, TowerMethod) and requested:
            raise ValueError(f"{type(method).__name__} chooses by what the tower sees: leave regions and keep out")
        return
    if not isinstance(method, InnerLLM):
        raise ValueError(f"method must be an InnerLLM such as ILP(layer=2), or a PreLLM such as PLC, not {method!r}")
    layers = method.layers
    if list(layers) != sorted(set(layers)) or any(not 0 <= layer <= num_layers for layer in layers):
        raise ValueError(
            f"{type(method).__name__} has layer={', '.join(map(str, layers))}, but this model has {num_layers} decoder "
            f"layers: choose ascending layers from 0 (prune before the first) to {num_layers} (dense)"
        )
    if method.needs_request and not requested:
        raise ValueError(f"{type(method).__name__} needs regions (or keep): give one per row")
