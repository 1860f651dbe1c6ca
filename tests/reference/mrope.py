"""Independent reference for Qwen2-VL's decoder under pruning: one row, lists of tokens, full attention, float64.

As `tests.reference.staged`, whose rules of decision it takes, with grouped keys, biases and positions on three axes.

Shapes: S tokens that live, H heads, D width.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any, Literal

import torch
from torch import Tensor

from tests.reference.masked import _norm
from tests.reference.staged import Decide, Living

Place = tuple[int, int] | Literal["text", "made"]
"""What a token is: text, a cell (row, column) of the picture in front of the last text, or made by a method."""


def places(ids: list[int], image: int, grids: list[tuple[int, int]]) -> list[Place]:
    """Of each token of a prompt whose pictures have these (rows, columns)."""
    found: list[Place] = []
    left = iter(grids)
    for visual, run in groupby(ids, lambda token: token == image):
        if visual:
            rows, cols = next(left)
            assert len(list(run)) == rows * cols
            found += [(row, col) for row in range(rows) for col in range(cols)]
        else:
            found += ["text"] * len(list(run))
    return found


def positions(found: list[Place]) -> list[tuple[int, int, int]]:
    """(time, row, column) of tokens that stand one behind the other, with nothing between them."""
    numbers: list[tuple[int, int, int]] = []
    start = 0
    for kind, run in groupby(found, lambda place: place if isinstance(place, str) else "cell"):
        members = list(run)
        if kind == "text":
            numbers += [(start + i,) * 3 for i in range(len(members))]
            start += len(members)
        elif kind == "made":
            numbers += [(start, start, start + i) for i in range(len(members))]
            start += len(members)
        else:
            rows = sorted({place[0] for place in members})
            cols = sorted({place[1] for place in members})
            numbers += [(start, start + rows.index(row), start + cols.index(col)) for row, col in members]
            start += max(len(rows), len(cols))
    return numbers


def logits(
    model: Any,
    ids_S: Tensor,
    features_VD: Tensor,
    grids: list[tuple[int, int]],
    decide: Decide,
    compact: bool,
    merges: bool = False,
) -> Tensor:
    """Logits (S, C) of the tokens that live at the end.

    Args:
        model: a Qwen2-VL or Qwen2.5-VL.
        ids_S: a prompt with its placeholders.
        features_VD: the visual tokens.
        grids: (rows, columns) of each picture.
        decide: which visual tokens stay.
        compact: number the survivors anew after each decision.
        merges: whether the method makes tokens, whatever it says in one decision.
    """
    decoder, image = model.model.language_model, model.config.image_token_id
    x_SD = decoder.embed_tokens.weight[ids_S].clone()
    x_SD[ids_S == image] = features_VD
    found = places(ids_S.tolist(), image, grids)
    numbers = positions(found)
    visual = [i for i, place in enumerate(found) if place != "text"]
    before: Tensor | None = None
    for index, block in enumerate(decoder.layers):
        ahead = attention(block, x_SD, numbers, decoder.config)[0]
        decided = decide(index, Living(x_SD, torch.tensor(numbers), visual, before, ahead))
        if decided is not None and len(decided[0]) < len(visual):
            kept, joined = decided
            order = [i for i in range(len(x_SD)) if i not in visual or i in set(kept)]
            added = [] if joined is None else list(joined)
            at = max(n for n, i in enumerate(order) if i in set(kept)) + 1
            x_SD = torch.stack([x_SD[i] for i in order[:at]] + added + [x_SD[i] for i in order[at:]])
            found = [found[i] for i in order[:at]] + ["made"] * len(added) + [found[i] for i in order[at:]]
            if merges:
                found = ["text" if place == "text" else "made" for place in found]
            visual = [i for i, place in enumerate(found) if place != "text"]
            numbers = positions(found) if compact else [numbers[i] for i in order]
        before, mixed_SD = attention(block, x_SD, numbers, decoder.config)
        x_SD = x_SD + mixed_SD
        y_SD = _norm(x_SD, block.post_attention_layernorm.weight, decoder.config.rms_norm_eps)
        gate = torch.nn.functional.silu(y_SD @ block.mlp.gate_proj.weight.T)
        x_SD = x_SD + (gate * (y_SD @ block.mlp.up_proj.weight.T)) @ block.mlp.down_proj.weight.T
    return _norm(x_SD, decoder.norm.weight, decoder.config.rms_norm_eps) @ model.lm_head.weight.T


def attention(block: Any, x_SD: Tensor, numbers: list[tuple[int, int, int]], config: Any) -> tuple[Tensor, Tensor]:
    """Probabilities (H, S, S) of a layer, and what its attention adds (S, D)."""
    heads, kv_heads, length = config.num_attention_heads, config.num_key_value_heads, len(x_SD)
    width, layer = config.hidden_size // heads, block.self_attn
    y_SD = _norm(x_SD, block.input_layernorm.weight, config.rms_norm_eps)
    q = _turned((y_SD @ layer.q_proj.weight.T + layer.q_proj.bias).view(length, heads, width), numbers, config)
    k = _turned((y_SD @ layer.k_proj.weight.T + layer.k_proj.bias).view(length, kv_heads, width), numbers, config)
    v = (y_SD @ layer.v_proj.weight.T + layer.v_proj.bias).view(length, kv_heads, width)
    probabilities, mixed = [], []
    for head in range(heads):
        of = head * kv_heads // heads
        later_SS = torch.ones(length, length, dtype=torch.bool).triu(1)
        score_SS = (q[:, head] @ k[:, of].T / width**0.5).masked_fill(later_SS, float("-inf"))
        probabilities.append(score_SS.softmax(-1))
        mixed.append(probabilities[-1] @ v[:, of])
    return torch.stack(probabilities), torch.cat(mixed, dim=1) @ layer.o_proj.weight.T


def _turned(x_SHE: Tensor, numbers: list[tuple[int, int, int]], config: Any) -> Tensor:
    """Each pair of numbers (i, i + E/2) of a head turned by the angle of the axis that frequency i belongs to."""
    half = x_SHE.shape[-1] // 2
    rope = config.rope_parameters
    axis = [a for a, size in enumerate(rope["mrope_section"]) for _ in range(size)]
    frequency = [1.0 / rope["rope_theta"] ** (torch.tensor(2.0 * i) / (2 * half)) for i in range(half)]
    angle = torch.stack([torch.tensor([n[axis[i]] for n in numbers]).float() * frequency[i] for i in range(half)], -1)
    cos, sin = angle.cos().to(x_SHE.dtype)[:, None], angle.sin().to(x_SHE.dtype)[:, None]
    first, second = x_SHE[..., :half], x_SHE[..., half:]
    return torch.cat([first * cos - second * sin, second * cos + first * sin], dim=-1)
