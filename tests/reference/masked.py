"""Independent reference for inner-LLM pruning: nothing is removed, dropped tokens are masked out of the attention.

Plain torch from the formulas of the Llama decoder, in the dtype of the weights, one row at a time, no cache, no
padding: in layers >= K a query may look at a key if the key is not later and was not dropped. Only the weights come
from the model. Hidden states of dropped positions are computed too, and then ignored.

Shapes: S sequence, D width, H heads, E head width.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


def _norm(x_SD: Tensor, weight_D: Tensor, epsilon: float) -> Tensor:
    x = x_SD.float()  # the model computes its norms in float32, whatever its dtype
    return weight_D * (x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon)).to(x_SD.dtype)


def _rotate(x_HSE: Tensor, position_S: Tensor, theta: float) -> Tensor:
    half = x_HSE.shape[-1] // 2
    frequency = 1.0 / theta ** (torch.arange(half).float() / half)
    angle = position_S[:, None].float() * frequency
    cos, sin = angle.cos().to(x_HSE.dtype), angle.sin().to(x_HSE.dtype)
    first, second = x_HSE[..., :half], x_HSE[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)


def masked_logits(
    model: Any, ids_S: Tensor, features_VD: Tensor, keep_S: Tensor, layer: int, compact: bool = False
) -> Tensor:
    """Logits `(S, C)` of one row; only those at kept positions mean anything.

    Args:
        model: a LLaVA with a Llama decoder.
        ids_S: input ids with image placeholders.
        features_VD: projected visual tokens.
        keep_S: bool, what layers >= `layer` may look at.
        layer: K.
        compact: renumber kept positions in layers >= `layer`.
    """
    decoder, config = model.model.language_model, model.config.text_config
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    width = config.hidden_size // heads
    x_SD = decoder.embed_tokens.weight[ids_S].clone()
    x_SD[ids_S == model.config.image_token_id] = features_VD
    length = len(ids_S)
    causal_SS = torch.ones(length, length, dtype=torch.bool).tril()
    for index, block in enumerate(decoder.layers):
        pruned = index >= layer
        position_S = keep_S.long().cumsum(0) - 1 if pruned and compact else torch.arange(length)
        y_SD = _norm(x_SD, block.input_layernorm.weight, config.rms_norm_eps)
        attention = block.self_attn

        def split(weight: Tensor, count: int, y_SD: Tensor = y_SD) -> Tensor:
            return (y_SD @ weight.T).view(length, count, width).transpose(0, 1)

        theta = config.rope_parameters["rope_theta"]
        q = _rotate(split(attention.q_proj.weight, heads), position_S, theta)
        k = _rotate(split(attention.k_proj.weight, kv_heads), position_S, theta)
        v = split(attention.v_proj.weight, kv_heads)
        k, v = (t.repeat_interleave(heads // kv_heads, dim=0) for t in (k, v))
        allowed_SS = causal_SS & keep_S[None, :] if pruned else causal_SS
        allowed_SS = allowed_SS | torch.eye(length, dtype=torch.bool)
        score = (q @ k.transpose(1, 2) / width**0.5).masked_fill(~allowed_SS, float("-inf"))
        mixed_SD = (score.softmax(-1) @ v).transpose(0, 1).reshape(length, -1)
        x_SD = x_SD + mixed_SD @ attention.o_proj.weight.T
        y_SD = _norm(x_SD, block.post_attention_layernorm.weight, config.rms_norm_eps)
        gate = torch.nn.functional.silu(y_SD @ block.mlp.gate_proj.weight.T)
        x_SD = x_SD + (gate * (y_SD @ block.mlp.up_proj.weight.T)) @ block.mlp.down_proj.weight.T
    return _norm(x_SD, decoder.norm.weight, config.rms_norm_eps) @ model.lm_head.weight.T


def masked_generate(
    model: Any,
    ids_S: Tensor,
    features_VD: Tensor,
    keep_S: Tensor,
    layer: int,
    steps: int,
    compact: bool = False,
) -> list[int]:
    """Greedy continuation by the reference, recomputing everything at each step."""
    generated: list[int] = []
    for _ in range(steps):
        ids = torch.cat([ids_S, torch.tensor(generated, dtype=torch.long)])
        keep = torch.cat([keep_S, torch.ones(len(generated), dtype=torch.bool)])
        generated.append(int(masked_logits(model, ids, features_VD, keep, layer, compact)[-1].argmax()))
    return generated
