"""Independent reference for methods that look at attention: one row, lists of tokens, full attention matrices, float64.

Nothing is gathered, masked or padded: after each stage the list of tokens is a shorter list. Every layer's attention is
computed as a whole, as the published code does.

Shapes: S tokens that live, H heads, D width, E width of a head.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from tests.reference.masked import _norm, _rotate


@dataclass
class Living:
    """The tokens before a layer.

    Attributes:
        x_SD: hidden states.
        position_S: their positions.
        visual: the indices of visual tokens among them.
        before_HSS: attention of the layer that has just run; None before layer 0.
        next_HSS: attention that the layer to come would give.
    """

    x_SD: Tensor
    position_S: Tensor
    visual: list[int]
    before_HSS: Tensor | None
    next_HSS: Tensor


Decide = Callable[[int, Living], tuple[list[int], Tensor | None] | None]
"""From a layer and what lives to the visual tokens that stay (indices among the living) and tokens that join behind."""


def staged_logits(model: Any, ids_S: Tensor, features_VD: Tensor, decide: Decide, compact: bool) -> Tensor:
    """Logits (S, C) of the tokens that live at the end."""
    decoder, config = model.model.language_model, model.config.text_config
    x_SD = decoder.embed_tokens.weight[ids_S].clone()
    x_SD[ids_S == model.config.image_token_id] = features_VD
    position_S = torch.arange(len(ids_S))
    visual = (ids_S == model.config.image_token_id).nonzero()[:, 0].tolist()
    before: Tensor | None = None
    for index, block in enumerate(decoder.layers):
        living = Living(x_SD, position_S, visual, before, _attention(block, x_SD, position_S, config)[0])
        decided = decide(index, living)
        if decided is not None:
            kept, joined = decided
            chosen = set(kept)
            order = [i for i in range(len(x_SD)) if i not in visual or i in chosen]
            added = [] if joined is None else list(joined)
            # what joins stands behind the last visual token that stays
            at = max((n for n, i in enumerate(order) if i in chosen), default=-1) + 1
            x_SD = torch.stack([x_SD[i] for i in order[:at]] + added + [x_SD[i] for i in order[at:]])
            visual = [n for n, i in enumerate(order[:at]) if i in chosen] + list(range(at, at + len(added)))
            position_S = torch.arange(len(x_SD)) if compact else position_S[order]
        before, mixed_SD = _attention(block, x_SD, position_S, config)
        x_SD = x_SD + mixed_SD
        y_SD = _norm(x_SD, block.post_attention_layernorm.weight, config.rms_norm_eps)
        gate = torch.nn.functional.silu(y_SD @ block.mlp.gate_proj.weight.T)
        x_SD = x_SD + (gate * (y_SD @ block.mlp.up_proj.weight.T)) @ block.mlp.down_proj.weight.T
    return _norm(x_SD, decoder.norm.weight, config.rms_norm_eps) @ model.lm_head.weight.T


def _attention(block: Any, x_SD: Tensor, position_S: Tensor, config: Any) -> tuple[Tensor, Tensor]:
    """Probabilities (H, S, S) of a layer, and what its attention adds (S, D)."""
    heads, kv_heads = config.num_attention_heads, config.num_key_value_heads
    width, length = config.hidden_size // heads, len(x_SD)
    y_SD = _norm(x_SD, block.input_layernorm.weight, config.rms_norm_eps)
    theta, layer = config.rope_parameters["rope_theta"], block.self_attn

    def split(weight: Tensor, count: int) -> Tensor:
        return (y_SD @ weight.T).view(length, count, width).transpose(0, 1)

    q = _rotate(split(layer.q_proj.weight, heads), position_S, theta)
    k = _rotate(split(layer.k_proj.weight, kv_heads), position_S, theta)
    v = split(layer.v_proj.weight, kv_heads)
    k, v = (t.repeat_interleave(heads // kv_heads, dim=0) for t in (k, v))
    later_SS = torch.ones(length, length, dtype=torch.bool).triu(1)
    probability = (q @ k.transpose(1, 2) / width**0.5).masked_fill(later_SS, float("-inf")).softmax(-1)
    return probability, (probability @ v).transpose(0, 1).reshape(length, -1) @ layer.o_proj.weight.T


def top(scores: list[float], candidates: list[int], count: int) -> list[int]:
    """The candidates of the highest scores, in their own order."""
    return sorted(sorted(candidates, key=lambda i: (-scores[i], i))[:count])


def fastv(layer: int, count: int) -> Decide:
    """FastV, from its description."""

    def decide(index: int, living: Living) -> tuple[list[int], None] | None:
        if index != layer:
            return None
        assert living.before_HSS is not None
        return top(living.before_HSS.mean(0)[-1].tolist(), living.visual, count), None

    return decide


def pyramiddrop(layers: list[int], ratio: float, total: int) -> Decide:
    """PyramidDrop, from its description."""

    def decide(index: int, living: Living) -> tuple[list[int], None] | None:
        if index not in layers:
            return None
        count = int(total * ratio ** (layers.index(index) + 1))
        return top(living.next_HSS.mean(0)[-1].tolist(), living.visual, count), None

    return decide


def sparsevlm(layers: list[int], kept: list[int], recycle: float) -> Decide:
    """SparseVLM, from its description; raters are text tokens, known by how many text tokens precede them."""
    raters: list[int] = []

    def decide(index: int, living: Living) -> tuple[list[int], Tensor | None] | None:
        text = [i for i in range(len(living.x_SD)) if i not in living.visual]
        if index == 0:
            words = [i for i in text if i > living.visual[-1]]
            product = living.x_SD[living.visual].float() @ living.x_SD[words].float().T
            share = product.softmax(1).mean(0).tolist()
            mean = sum(share) / len(share)
            raters.extend(text.index(i) for i, one in zip(words, share, strict=True) if one > mean)
        if index - 1 not in layers:
            return None
        assert living.before_HSS is not None
        attention = living.before_HSS.mean(0)
        score = torch.stack([attention[text[rater]] for rater in raters]).mean(0).tolist()
        stay = top(score, living.visual, kept[layers.index(index - 1)])
        gone = [i for i in living.visual if i not in stay]
        if not recycle or not gone:
            return stay, None
        again = top(score, gone, int(recycle * len(gone)) + 1)
        return stay, clusters(living.x_SD[again])

    return decide


def clusters(x_ND: Tensor) -> Tensor:
    """Means of clusters by density peaks, with loops."""
    count, number = len(x_ND), len(x_ND) // 10 + 1
    distance = [[math.dist(a, b) / math.sqrt(len(a)) for b in x_ND.tolist()] for a in x_ND.tolist()]
    density = [math.exp(-sum(d * d for d in sorted(row)[:number]) / number) for row in distance]
    far = max(map(max, distance))
    parent = [min((distance[i][j] for j in range(count) if density[j] > density[i]), default=far) for i in range(count)]
    centers = sorted(range(count), key=lambda i: (-density[i] * parent[i], i))[:number]
    members: dict[int, list[int]] = {center: [] for center in centers}
    for i in range(count):
        own = i if i in centers else min(centers, key=lambda c: (distance[i][c], centers.index(c)))
        members[own].append(i)
    return torch.stack([x_ND[members[center]].mean(0) for center in centers])


def divprune(x_VD: Tensor, count: int) -> list[int]:
    """Max-min selection, with loops."""
    unit = [(row / row.norm()).tolist() for row in x_VD]
    distance = [[1 - sum(a * b for a, b in zip(u, v, strict=True)) for v in unit] for u in unit]
    everyone = range(len(unit))
    chosen = [max(everyone, key=lambda i: (min(distance[i][j] for j in everyone if j != i), -i))]
    while len(chosen) < count:
        rest = [i for i in everyone if i not in chosen]
        chosen.append(max(rest, key=lambda i: (min(distance[i][j] for j in chosen), -i)))
    return sorted(chosen)
