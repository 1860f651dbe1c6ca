"""Calls of a pruned model: what is read off them, and what is refused because it would go silently wrong.

Shapes: B rows, S positions.
"""

from __future__ import annotations

import inspect
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from cropl.pruning.base import NotSupportedError, PruningError
from cropl.pruning.cache import Prefix

Kwargs = dict[str, Any]


def has_images(kwargs: Kwargs) -> bool:
    """Whether a forward is given pictures (or films)."""
    # Not by the placeholder: a sampled token may happen to be one.
    return kwargs.get("pixel_values") is not None or bool(kwargs.get("mm_encoder_outputs")) or _has_video(kwargs)


def check_prefill(kwargs: Kwargs) -> Tensor:
    """The `input_ids` (B, S) of a prefill.

    Raises:
        NotSupportedError: there are none, the mask is not one of tokens, or there is a video.
    """
    ids_BS, mask_BS = kwargs.get("input_ids"), kwargs.get("attention_mask")
    if not isinstance(ids_BS, Tensor):
        raise NotSupportedError("pruning finds visual tokens in input_ids: give input_ids, not inputs_embeds")
    if mask_BS is not None and (not isinstance(mask_BS, Tensor) or mask_BS.shape != ids_BS.shape):
        raise NotSupportedError(f"attention_mask must have the shape of input_ids, {tuple(ids_BS.shape)}")
    if _has_video(kwargs):
        raise NotSupportedError("videos are not supported by pruning: give images, or run the model unpruned")
    return ids_BS


def attended(kwargs: Kwargs) -> Tensor:
    """Bool (B, S): the positions of a prefill that are no padding."""
    ids_BS, mask_BS = kwargs["input_ids"], kwargs.get("attention_mask")
    ones_BS = torch.ones_like(ids_BS, dtype=torch.bool)
    return ones_BS if mask_BS is None else mask_BS.to(ids_BS.device).bool()


def asks_for_inner_states(config: Any, kwargs: Kwargs) -> bool:
    """Whether outputs are to hold what layers give, which then has to be padded rows."""
    names = ("output_hidden_states", "output_attentions")
    return any(getattr(config, name, False) if kwargs.get(name) is None else kwargs[name] for name in names)


def check_continuation(kwargs: Kwargs) -> None:
    """NotSupportedError for a call on a filled cache that pruning had no part in, if it brings images."""
    if has_images(kwargs):
        raise NotSupportedError(
            "images on top of a filled cache (second turn, cached prefix, prefill_chunk_size) cannot be pruned: "
            "prefill the whole prompt at once"
        )


def check_step(prefix: Prefix, owner: Any, kwargs: Kwargs) -> Tensor:
    """The new tokens, ids (B, 1) or embeddings (B, 1, D), of a decoding step on a cache with this prefix.

    Raises:
        NotSupportedError: the step is none of one token behind a left-padded prompt, or brings a mask of pairs.
        PruningError: the cache is another context's, or another batch's, or the mask of its padding is missing.
    """
    new = kwargs["input_ids"] if kwargs.get("input_ids") is not None else kwargs["inputs_embeds"]
    mask_BS, rows = kwargs.get("attention_mask"), len(prefix.next_B)
    if prefix.owner() is not owner:
        raise PruningError("this key-value cache was filled inside another pruned(...) context: prefill again")
    if new.shape[1] != 1:
        raise NotSupportedError(
            "several tokens at once on a pruned cache (second turn, chunked prefill, assisted decoding) are not "
            "supported: decode one token at a time, or prefill the whole prompt at once"
        )
    if prefix.right_padded:
        raise NotSupportedError("right-padded prompts cannot be continued: pad on the left (padding_side='left')")
    if new.shape[0] != rows:
        raise PruningError(f"{new.shape[0]} rows on a cache of {rows} rows")
    if mask_BS is None and prefix.padded and prefix.groups[0].start:  # layers in front of the prune see the padding
        raise PruningError("the prompt was padded: give the attention_mask of all tokens so far")
    if mask_BS is not None and (not isinstance(mask_BS, Tensor) or mask_BS.ndim != 2):
        raise NotSupportedError("only two-dimensional attention masks are supported by pruning")
    found: Tensor = new
    return found


def named(module: nn.Module, args: tuple[Any, ...], kwargs: Kwargs) -> Kwargs:
    """All arguments of a forward by name, in a new dict."""
    if not args:
        return dict(kwargs)
    forward = getattr(module.forward, "__func__", module.forward)
    names = _parameters(forward)[forward is not module.forward :]  # without self
    return {**dict(zip(names, args, strict=False)), **kwargs}


@lru_cache
def _parameters(forward: Any) -> list[str]:
    return list(inspect.signature(forward).parameters)


def _has_video(kwargs: Kwargs) -> bool:
    encoded = kwargs.get("mm_encoder_outputs") or {}
    given = [kwargs.get("pixel_values_videos"), kwargs.get("video_grid_thw"), encoded.get("video")]
    return any(value is not None for value in given)
