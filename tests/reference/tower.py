"""Independent reference of methods that look into the vision tower: full attention matrices, float64, loops.

Shapes: P patches, V visual tokens, H heads, W the tower's width.
"""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class Inside:
    """What the tower has of one image.

    Attributes:
        x_VW: features that are merged.
        attention_HV: attention that each visual token gets.
        key_VE: its key, averaged over heads.
        class_W: feature of the class token, or None.
    """

    x_VW: Tensor
    attention_HV: Tensor
    key_VE: Tensor
    class_W: Tensor | None


def clip_inside(model: Any, pixel: Tensor) -> Inside:
    """One image in the CLIP tower of a LLaVA, whose features are the output of the last layer but one."""
    tower = copy.deepcopy(model.model.vision_tower)
    tower.set_attn_implementation("eager")
    out = tower(pixel[None], output_attentions=True, output_hidden_states=True)
    layer = tower.encoder.layers[-2]
    before_TW = out.hidden_states[-3][0]
    normed_TW = torch.nn.functional.layer_norm(
        before_TW, before_TW.shape[1:], layer.layer_norm1.weight, layer.layer_norm1.bias, layer.layer_norm1.eps
    )
    key_TW = normed_TW @ layer.self_attn.k_proj.weight.T + layer.self_attn.k_proj.bias
    heads = tower.config.num_attention_heads
    width = key_TW.shape[1] // heads
    key_TE = sum(key_TW[:, head * width : (head + 1) * width] for head in range(heads)) / heads
    features_TW = out.hidden_states[-2][0]
    return Inside(features_TW[1:], out.attentions[-2][0][:, 0, 1:], key_TE[1:], features_TW[0])


def qwen_inside(vlm: Any, image: Any, block_index: int) -> tuple[Inside, list[int]]:
    """One image in a Qwen tower, its merged tokens as its merger leaves them, and the place of each in the image."""
    tower = vlm.model.model.visual
    block, held = tower.blocks[block_index], {}

    def before(module: Any, args: Any, kwargs: Any) -> None:
        held["x"] = args[0] if args else kwargs["hidden_states"]
        held["rope"] = kwargs["position_embeddings"]

    handles = [
        block.attn.register_forward_pre_hook(before, with_kwargs=True),
        tower.merger.register_forward_hook(lambda module, args, output: held.__setitem__("merged", output)),
    ]
    [final] = vlm.encode_images([image])
    for handle in handles:
        handle.remove()
    x_PW, (cos, sin), attention = held["x"], held["rope"], block.attn
    heads = attention.num_heads
    width = x_PW.shape[1] // heads
    query_PW, key_PW, _ = (x_PW @ attention.qkv.weight.T + attention.qkv.bias).chunk(3, dim=1)

    def turned(x_PE: Tensor) -> Tensor:
        first, second = x_PE[:, : width // 2], x_PE[:, width // 2 :]
        return x_PE * cos + torch.cat([-second, first], 1) * sin

    gets, keys = [], []
    for head in range(heads):
        mine = slice(head * width, (head + 1) * width)
        score_PP = turned(query_PW[:, mine]) @ turned(key_PW[:, mine]).T / width**0.5
        gets.append(score_PP.softmax(1).mean(0))
        keys.append(key_PW[:, mine])
    group = vlm.merge**2
    attention_HV = torch.stack(gets).view(heads, -1, group).mean(2)
    key_VE = (sum(keys) / heads).view(-1, group, width).mean(1)
    merged = held["merged"]
    places = [next(j for j in range(len(final)) if torch.equal(final[j], row)) for row in merged]
    return Inside(merged, attention_HV, key_VE, None), places


def visionzip(inside: Inside, count: int, contextual: int) -> tuple[list[int], Tensor, list[int]]:
    """Dominant patches, contextual features and their targets."""
    total = [sum(column) for column in inside.attention_HV.T.tolist()]
    patches = count - contextual - (inside.class_W is not None)
    dominant = sorted(sorted(range(len(total)), key=lambda i: (-total[i], i))[:patches])
    rest = [i for i in range(len(total)) if i not in dominant]
    targets = [rest[max(1, len(rest) // contextual) * number] for number in range(contextual)] if contextual else []
    members: dict[int, list[int]] = {target: [] for target in targets}
    for i in rest:
        if targets and i not in targets:
            likeness = [float(torch.cosine_similarity(inside.key_VE[i], inside.key_VE[t], dim=0)) for t in targets]
            members[targets[likeness.index(max(likeness))]].append(i)
    merged = [
        inside.x_VW[target] + (sum(inside.x_VW[i] for i in joined) / len(joined) if joined else 0)
        for target, joined in members.items()
    ]
    return dominant, torch.stack(merged) if merged else inside.x_VW[:0], targets


def vispruner(inside: Inside, count: int, important: float) -> list[int]:
    """The patches that stay."""
    mean = inside.attention_HV.mean(0).tolist()
    order = sorted(range(len(mean)), key=lambda i: (-mean[i], i))
    attended = int(count * important)
    chosen, others = order[:attended], order[attended:]
    while count > attended and len(others) > count - attended:
        even, odd = others[0::2], others[1::2]
        like = {
            i: max(float(torch.cosine_similarity(inside.x_VW[i], inside.x_VW[j], dim=0)) for j in odd) for i in even
        }
        falling = sorted(even, key=lambda i: -like[i])
        others = falling[min(8, len(others) - (count - attended)) :] + odd
    return sorted(chosen + (others if count > attended else []))


def projected(model: Any, x_NW: Tensor) -> Tensor:
    """LLaVA's projector, from its weights."""
    one, two = model.model.multi_modal_projector.linear_1, model.model.multi_modal_projector.linear_2
    hidden = torch.nn.functional.gelu(x_NW @ one.weight.T + one.bias)
    return hidden @ two.weight.T + two.bias


def zipped(model: Any, pixel: Tensor, count: int, contextual: int) -> Tensor:
    """The tokens that a LLaVA's image becomes under VisionZip."""
    inside = clip_inside(model, pixel)
    dominant, merged, _ = visionzip(inside, count, contextual)
    assert inside.class_W is not None
    return projected(model, torch.cat([inside.class_W[None], inside.x_VW[dominant], merged]))
