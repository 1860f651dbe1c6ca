"""What a prefill costs, from shapes: FLOPs of language model and vision tower, bytes of the key-value cache.

FLOPs are 2 per multiply-accumulate of the matrix products; norms, activations and softmax are left out. Causal
attention is halved (n^2 / 2 pairs), that of vision towers is not. The vocabulary head counts for the last position
only, as generation needs it. Papers that report "TFLOPs" often mean multiply-accumulates over all n^2 pairs: half of
these linear terms, and as much attention.

Attention is quadratic, so costs are computed per question and then averaged, never from an average length.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import Cache


def linear_flops(config: Any, tokens_per_layer: Sequence[int], logits: int = 1) -> int:
    """FLOPs of the linear layers of a gated (Llama, Mistral, Qwen2) decoder and of its vocabulary head.

    Args:
        config: the text config.
        tokens_per_layer: tokens of one sequence entering each decoder layer, text included.
        logits: positions that the vocabulary head is applied to.
    """
    _check_layers(config, len(tokens_per_layer))
    width, heads, kv_heads, head_width = _attention_shape(config)
    projections = 2 * width * heads * head_width + 2 * width * kv_heads * head_width  # q and o, k and v
    per_token = projections + 3 * width * config.intermediate_size
    return 2 * per_token * sum(tokens_per_layer) + 2 * logits * width * config.vocab_size


def attention_flops(config: Any, tokens_per_layer: Sequence[int]) -> int:
    """FLOPs of the two attention products of a causal decoder: 4 n^2 per channel and layer, halved."""
    _check_layers(config, len(tokens_per_layer))
    _, heads, _, head_width = _attention_shape(config)
    return 2 * heads * head_width * sum(tokens * tokens for tokens in tokens_per_layer)


def decoder_flops(config: Any, tokens_per_layer: Sequence[int], logits: int = 1) -> int:
    """FLOPs of one sequence's prefill: `linear_flops` + `attention_flops`.

    Example (LLaVA-1.5-7B's decoder with 64 tokens of text, 576 visual tokens against 64 from layer 2 on):
        >>> from transformers import LlamaConfig
        >>> config = LlamaConfig(vocab_size=32064)
        >>> dense = decoder_flops(config, layer_tokens(32, 576, 576, 64))
        >>> pruned = decoder_flops(config, layer_tokens(32, 576, 64, 64, layer=2))
        >>> round(dense / 1e12, 2), round(pruned / dense, 2)
        (8.4, 0.25)
    """
    return linear_flops(config, tokens_per_layer, logits) + attention_flops(config, tokens_per_layer)


def layer_tokens(
    num_layers: int, visual_full: int, visual_kept: int, text_tokens: int, layer: int | None = None
) -> list[int]:
    """Tokens entering each layer when `visual_kept` of `visual_full` visual tokens go on from layer K=`layer` on.

    None (or L) is dense.
    """
    first = num_layers if layer is None else layer
    if not 0 <= first <= num_layers:
        raise ValueError(f"layer={layer}: must be 0 to {num_layers}")
    if not 0 <= visual_kept <= visual_full:
        raise ValueError(f"visual_kept={visual_kept}: must be 0 to visual_full={visual_full}")
    return [text_tokens + (visual_full if index < first else visual_kept) for index in range(num_layers)]


def prefill_flops(config: Any, visual_full: int, visual_kept: int, text_tokens: int, layer: int | None = None) -> int:
    """FLOPs of the language model's prefill under inner-LLM pruning before layer K (None is dense)."""
    counts = layer_tokens(config.num_hidden_layers, visual_full, visual_kept, text_tokens, layer)
    return decoder_flops(config, counts)


def vision_flops(
    config: Any, patches: int | tuple[int, int] | None = None, layers: int | None = None, crops: int = 1
) -> int:
    """FLOPs to turn one image into visual tokens: vision tower, and projector or merger.

    Args:
        config: of the whole model (`llava`, `llava_next`, `internvl`, `qwen2_vl` or `qwen2_5_vl`).
        patches: rows and columns of the image's patches before merging; needed for Qwen2-VL and Qwen2.5-VL, whose grid
            follows the image. Their product will do for Qwen2-VL, which has no windows.
        layers: tower layers to count. None is all of them, which is what `transformers` runs; published numbers for
            LLaVA often stop at the layer that is used (23 of 24).
        crops: pictures that the tower is shown: 1, or the whole view and the tiles of LLaVA-NeXT and InternVL. Tokens
            that unpadding cuts away behind the projector were computed, and count.

    Raises:
        ValueError: the model family is not known here, or `patches` is missing.
    """
    if config.model_type == "qwen2_vl":
        if patches is None:
            raise ValueError("patches is needed for Qwen2-VL: rows and columns of the image's patches, before merging")
        count = patches if isinstance(patches, int) else patches[0] * patches[1]
        return _qwen2_vl_flops(config.vision_config, count, layers)
    if config.model_type == "qwen2_5_vl":
        if patches is None or isinstance(patches, int):
            raise ValueError("patches is needed for Qwen2.5-VL as (rows, columns), before merging: windows cut them")
        return _qwen2_5_vl_flops(config.vision_config, *patches, layers)
    if config.model_type == "internvl":
        return crops * _internvl_flops(config, layers)
    if config.model_type not in ("llava", "llava_next") or config.vision_config.model_type != "clip_vision_model":
        raise ValueError(
            f"vision FLOPs of {config.model_type!r} are not known; known: llava and llava_next with CLIP, internvl, "
            "qwen2_vl, qwen2_5_vl"
        )
    return crops * _llava_flops(config, layers)


def kv_bytes(cache: Cache) -> int:
    """Bytes of the keys and values that a cache holds, read off its tensors (all rows, padding included)."""
    total = 0
    for layer in cache.layers:
        for part in (getattr(layer, "keys", None), getattr(layer, "values", None)):
            total += part.numel() * part.element_size() if isinstance(part, Tensor) else 0
    return total


def kv_bytes_of_shapes(config: Any, tokens_per_layer: Sequence[int], dtype: torch.dtype) -> int:
    """Bytes of keys and values for one sequence with these tokens in each layer."""
    _check_layers(config, len(tokens_per_layer))
    _, _, kv_heads, head_width = _attention_shape(config)
    return 2 * kv_heads * head_width * sum(tokens_per_layer) * dtype.itemsize


def _attention_shape(config: Any) -> tuple[int, int, int, int]:
    """Hidden width, query heads, key-value heads, width of a head."""
    heads = config.num_attention_heads
    kv_heads = getattr(config, "num_key_value_heads", None) or heads
    head_width = getattr(config, "head_dim", None) or config.hidden_size // heads
    return config.hidden_size, heads, kv_heads, head_width


def _check_layers(config: Any, given: int) -> None:
    if given != config.num_hidden_layers:
        raise ValueError(f"tokens_per_layer has {given} entries for {config.num_hidden_layers} decoder layers")


def _llava_flops(config: Any, layers: int | None) -> int:
    vision, text = config.vision_config, config.text_config
    width = vision.hidden_size
    patches = (vision.image_size // vision.patch_size) ** 2
    tokens = patches + 1  # the class token
    embed = patches * vision.num_channels * vision.patch_size**2 * width
    block = tokens * (4 * width**2 + 2 * width * vision.intermediate_size) + 2 * tokens**2 * width
    used = config.vision_feature_layer
    features = width * (1 if isinstance(used, int) else len(used))
    projector = patches * (features * text.hidden_size + text.hidden_size**2)
    return 2 * (embed + (vision.num_hidden_layers if layers is None else layers) * block + projector)


def _internvl_flops(config: Any, layers: int | None) -> int:
    vision, text = config.vision_config, config.text_config
    width = vision.hidden_size
    patches = (vision.image_size[0] // vision.patch_size[0]) * (vision.image_size[1] // vision.patch_size[1])
    tokens = patches + 1  # the class token
    embed = patches * vision.num_channels * vision.patch_size[0] * vision.patch_size[1] * width
    block = tokens * (4 * width**2 + 2 * width * vision.intermediate_size) + 2 * tokens**2 * width
    shuffled = round(1 / config.downsample_ratio) ** 2
    projector = patches // shuffled * (width * shuffled * text.hidden_size + text.hidden_size**2)
    return 2 * (embed + (vision.num_hidden_layers if layers is None else layers) * block + projector)


def _qwen2_vl_flops(vision: Any, patches: int, layers: int | None) -> int:
    width, merge = vision.embed_dim, vision.spatial_merge_size**2
    embed = patches * vision.in_channels * vision.temporal_patch_size * vision.patch_size**2 * width
    block = patches * (4 * width**2 + 2 * width * int(width * vision.mlp_ratio)) + 2 * patches**2 * width
    merged = width * merge
    merger = patches // merge * (merged**2 + merged * vision.hidden_size)
    return 2 * (embed + (vision.depth if layers is None else layers) * block + merger)


def _qwen2_5_vl_flops(vision: Any, rows: int, columns: int, layers: int | None) -> int:
    width, merge, patches = vision.hidden_size, vision.spatial_merge_size, rows * columns
    counted = range(vision.depth if layers is None else layers)
    embed = patches * vision.in_channels * vision.temporal_patch_size * vision.patch_size**2 * width
    block = patches * (4 * width**2 + 3 * width * vision.intermediate_size)
    side = vision.window_size // merge // vision.patch_size * merge  # of a window, in patches
    windowed = _squares(rows, side) * _squares(columns, side)
    pairs = sum(patches**2 if layer in vision.fullatt_block_indexes else windowed for layer in counted)
    merged = width * merge**2
    merger = patches // merge**2 * (merged**2 + merged * vision.out_hidden_size)
    return 2 * (embed + len(counted) * block + 2 * width * pairs + merger)


def _squares(length: int, side: int) -> int:
    """Sum of the squared parts of a length that is cut from its start; the last part is what is left."""
    return length // side * side**2 + (length % side) ** 2
