"""What the static path asks of a model: how a prompt enters its decoder, and that nothing of it goes unnoticed.

Shapes: B rows, S positions of the prompt, D hidden width.
"""

from __future__ import annotations

import threading
from typing import Any

import torch
from torch import Tensor

from cropl.models.vlm import VLM
from cropl.pruning.base import NotSupportedError, PruningError
from cropl.pruning.calls import attended
from cropl.pruning.checks import check_model
from cropl.pruning.deltas import RopeDeltas
from cropl.pruning.patch import is_pruned

_NEUTRAL: dict[str, Any] = {
    "num_beams": 1,
    "repetition_penalty": 1.0,
    "encoder_repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0,
    "encoder_no_repeat_ngram_size": 0,
    "min_length": 0,
    "min_new_tokens": 0,
    "guidance_scale": 1.0,
    "bad_words_ids": None,
    "suppress_tokens": None,
    "begin_suppress_tokens": None,
    "forced_bos_token_id": None,
    "forced_eos_token_id": None,
    "sequence_bias": None,
    "exponential_decay_length_penalty": None,
    "watermarking_config": None,
    "stop_strings": None,
}
"""Settings of a generation config that change a greedy answer, and the value at which they do not."""


class _Entered(Exception):
    """The decoder was reached."""


def check_static(vlm: VLM) -> None:
    """Raise `NotSupportedError` unless this model's layers can be run at static shapes."""
    check_model(vlm)
    config, devices = vlm.decoder.config, {parameter.device for parameter in vlm.decoder.parameters()}
    if config._attn_implementation != "sdpa":
        raise NotSupportedError(
            f"attention kernel {config._attn_implementation!r} is not supported at static shapes: load the model with "
            'attn_implementation="sdpa"'
        )
    rope = vlm.decoder.rotary_emb.rope_type
    if "dynamic" in rope or rope == "longrope":
        raise NotSupportedError(f"rope type {rope!r} changes with the length of an answer: use pruned(...)")
    if len(devices) > 1 or torch.device("meta") in devices:
        raise NotSupportedError(
            f"the decoder lies on {', '.join(sorted(map(str, devices)))}: static shapes need it on one device"
        )


def ends(vlm: VLM) -> tuple[list[int], int]:
    """Tokens that end an answer, and the one that follows behind them.

    Raises:
        NotSupportedError: the generation config asks for more than greedy decoding.
    """
    config = vlm.model.generation_config
    changed = [name for name, value in _NEUTRAL.items() if getattr(config, name, None) not in (None, value)]
    if changed:
        raise NotSupportedError(
            f"{changed[0]}={getattr(config, changed[0])!r} in the model's generation config is not supported at static "
            f"shapes: set model.generation_config.{changed[0]} = None, or use pruned(...)"
        )
    eos = config.eos_token_id
    found = [] if eos is None else [int(token) for token in (eos if isinstance(eos, list | tuple) else [eos])]
    pad = config.pad_token_id
    return found, int(pad if pad is not None else (found or [0])[0])


def entering(vlm: VLM, kwargs: dict[str, Any]) -> tuple[Tensor, Tensor]:
    """What enters the decoder, (B, S, D), and its positions, (B, S) or under M-RoPE (3, B, S).

    The model's own forward runs up to there: tower, embeddings, and where visual tokens go among them.

    Args:
        vlm: the model.
        kwargs: what `model.generate` takes for it.

    Raises:
        PruningError: it is inside `pruned(...)`.
    """
    if is_pruned(vlm):
        raise PruningError("this model is inside pruned(...): leave the context first, StaticRunner prunes by itself")
    base: Any = vlm.base
    seen: dict[str, Any] = {}
    thread = threading.get_ident()

    def stop(module: Any, args: tuple[Any, ...], given: dict[str, Any]) -> None:
        if threading.get_ident() == thread:  # another thread may run the whole model meanwhile
            seen.update(given)
            raise _Entered

    axes, deltas = hasattr(base, "rope_deltas"), RopeDeltas(base)
    full_BS = attended(kwargs)
    counted_BS = (full_BS.long().cumsum(1) - 1).clamp(min=0)  # as `generate` counts
    call = {**kwargs, "use_cache": False} if axes else {**kwargs, "use_cache": False, "position_ids": counted_BS}
    handle = vlm.decoder.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        base(**call)
    except _Entered:
        pass
    finally:
        handle.remove()
        deltas.restore()
    position = seen.get("position_ids")
    if position is None:
        position = counted_BS
    if axes:
        position = position[-3:] if position.ndim == 3 else position.expand(3, -1, -1)
    return seen["inputs_embeds"], position
