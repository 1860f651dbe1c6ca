"""What a vision tower shows of an image: for methods that choose or merge visual tokens before the language model.

Hooks on one instance pick up what a layer computes anyway, its queries and keys; of attention only the rows that are
asked for are computed from them, so the tower stays on its fused kernel.

Shapes: B images, T tokens of the tower, P patches, V visual tokens, H heads, E width of a head, W the tower's width,
D the decoder's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn
from transformers import CLIPVisionModel
from transformers.models.qwen2_vl.modeling_qwen2_vl import apply_rotary_pos_emb_vision

SCORES = 2**23
"""Attention scores that are held at a time where every query counts."""


@dataclass(frozen=True)
class TowerView:
    """One image, or one crop of it, inside the tower.

    Attributes:
        feature_VW: each visual token in front of the projector; behind it where the projector merges patches.
        token_VD: each visual token behind the projector, as the language model gets it.
        attention_HV: how much attention each visual token gets, at least float32. Of the class token, in a softmax over
            all tokens; without one, averaged over all queries and over the patches of a merged token.
        key_VE: keys of the same layer, averaged over heads and over the patches of a merged token.
        class_W: the class token beside `feature_VW`; None in towers without one.
        project: features (N, W) to visual tokens (N, D).
    """

    feature_VW: Tensor
    token_VD: Tensor
    attention_HV: Tensor
    key_VE: Tensor
    class_W: Tensor | None
    project: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class TowerImage:
    """An image that ran through the tower.

    Attributes:
        views: one, or one per crop that the model makes of it, in their order.
        token_VD: what enters the language model in its place.
    """

    views: Sequence[TowerView]
    token_VD: Tensor


Record = Callable[[TowerImage], None]


def each_an_image(record: Record) -> Callable[[list[TowerView]], None]:
    """Tells `record` of a batch of views, of which each is an image of its own."""

    def seen(views: list[TowerView]) -> None:
        for view in views:
            record(TowerImage([view], view.token_VD))

    return seen


class Watch:
    """Hooks on one instance, until `remove`.

    Args:
        handles: theirs.
        undo: what else there is to take back.
    """

    def __init__(self, handles: Sequence[Any], undo: Callable[[], None] = lambda: None) -> None:
        self._handles, self._undo = list(handles), undo

    def remove(self) -> None:
        """Take them off again; nothing else of the instance was changed."""
        for handle in self._handles:
            handle.remove()
        self._undo()


def watch_class_token(
    layer: Any, projector: nn.Module, seen: Callable[[list[TowerView]], None], undo: Callable[[], None] = lambda: None
) -> Watch:
    """Tell `seen` of each batch that goes through a tower with a class token and on into the projector.

    Args:
        layer: of a CLIP tower: the one whose output is projected, without the class token in front.
        projector: behind it; it may be called for other features at any time.
        seen: gets the views of a batch, in its order.
        undo: called when the hooks are removed.
    """
    attention, held = layer.self_attn, dict[str, Tensor]()

    def hold(name: str) -> Callable[..., None]:
        def hook(module: nn.Module, args: Any, output: Any) -> None:
            held[name] = output[0] if isinstance(output, tuple) else output

        return hook

    def projected(module: nn.Module, args: tuple[Any, ...], token_BVD: Tensor) -> None:
        if len(held) < len(places):  # features of another origin
            return
        with torch.no_grad():
            query_BHE = held["query"][:, 0].unflatten(-1, (attention.num_heads, -1))
            key_BTHE = held["key"].unflatten(-1, (attention.num_heads, -1))
            score_BHT = exact(torch.einsum("bhe,bthe->bht", query_BHE, key_BTHE)) * attention.scale
            attention_BHV = score_BHT.softmax(-1)[..., 1:]
            key_BVE = key_BTHE[:, 1:].mean(2)
            class_BW = held["hidden"][:, 0]
        held.clear()
        parts = zip(args[0], token_BVD, attention_BHV, key_BVE, class_BW, strict=True)
        seen([TowerView(*part, project=projector) for part in parts])

    places = {"query": attention.q_proj, "key": attention.k_proj, "hidden": layer}
    handles = [module.register_forward_hook(hold(name)) for name, module in places.items()]
    return Watch([*handles, projector.register_forward_hook(projected)], undo)


def watch_packed(layer: Any, projector: nn.Module, packer: Any, record: Record) -> Watch:
    """As `watch_class_token`, where an image is several crops, whose tokens `packer.pack_image_features` puts together.

    `packer` is asked on this one instance, until the watch is removed.
    """
    held: list[TowerView] = []
    pack, before = packer.pack_image_features, vars(packer).get("pack_image_features")

    def packing(image_features: Sequence[Tensor], *args: Any, **kwargs: Any) -> Any:
        packed = pack(image_features, *args, **kwargs)
        views, count = iter(held), len(held)
        if count == sum(map(len, image_features)):  # else features of another origin
            for crop_CVD, token_VD in zip(image_features, packed[0], strict=True):
                record(TowerImage(list(islice(views, len(crop_CVD))), token_VD))
        held.clear()
        return packed

    def undo() -> None:
        if before is None:
            del packer.pack_image_features
        else:
            packer.pack_image_features = before

    watch = watch_class_token(layer, projector, held.extend, undo)
    packer.pack_image_features = packing
    return watch


def watch_merged(
    tower: nn.Module, block: Any, merge: int, record: Record, order: Callable[[Tensor], Tensor] | None = None
) -> Watch:
    """Tell `record` of each image that goes through a Qwen tower, which has no class token and merges patches.

    Args:
        tower: with its merger, which joins merge x merge consecutive patches.
        block: of its blocks one that looks at whole images.
        record: told of the images of a batch, in its order.
        order: from the images' (frames, rows, columns) of patches to where, among merged tokens inside the tower, each
            merged token of its output stood; None where the tower does not sort them.
    """
    attention, held = block.attn, dict[str, Any]()

    def before(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
        held["rope"] = kwargs["position_embeddings"]

    def hold(module: nn.Module, args: Any, output: Tensor) -> None:
        held["qkv"] = output

    def done(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        grid_thw = kwargs["grid_thw"] if "grid_thw" in kwargs else args[1]
        token_ND = output.pooler_output
        with torch.no_grad():
            query_PHE, plain_PHE, _ = held.pop("qkv").unflatten(-1, (3, attention.num_heads, -1)).unbind(1)
            query_PHE, key_PHE = apply_rotary_pos_emb_vision(query_PHE, plain_PHE, *held.pop("rope"))
            patches = grid_thw.prod(-1).tolist()  # of one frame each, as images are
            pairs = zip(query_PHE.split(patches), key_PHE.split(patches))
            attention_HP = torch.cat([received(query, key, attention.scaling) for query, key in pairs], dim=1)
            attention_HN = attention_HP.unflatten(1, (-1, merge * merge)).mean(2)
            key_NE = plain_PHE.mean(1).unflatten(0, (-1, merge * merge)).mean(1)
            if order is not None:
                place_N = order(grid_thw).to(key_NE.device)
                attention_HN, key_NE = attention_HN[:, place_N], key_NE[place_N]
        counts = [count // merge**2 for count in patches]
        parts = zip(token_ND.split(counts), attention_HN.split(counts, 1), key_NE.split(counts), strict=True)
        for token_VD, attention_HV, key_VE in parts:
            view = TowerView(token_VD, token_VD, attention_HV, key_VE, None, project=lambda feature_ND: feature_ND)
            record(TowerImage([view], token_VD))

    return Watch([
        attention.register_forward_pre_hook(before, with_kwargs=True),
        attention.qkv.register_forward_hook(hold),
        tower.register_forward_hook(done, with_kwargs=True),
    ])  # fmt: skip


def received(query_PHE: Tensor, key_PHE: Tensor, scale: float) -> Tensor:
    """Attention (H, P) that each patch gets, averaged over all queries, of which a few are looked at a time."""
    patches, heads, _ = query_PHE.shape
    total_HP = exact(query_PHE.new_zeros(heads, patches))
    for query_QHE in query_PHE.split(max(1, SCORES // (heads * patches))):
        score_HQP = exact(torch.einsum("qhe,phe->hqp", query_QHE, key_PHE)) * scale
        total_HP = total_HP + score_HQP.softmax(-1).sum(1)
    return total_HP / patches


def exact(x: Tensor) -> Tensor:
    """In float32 at least, for a softmax."""
    return x.to(torch.promote_types(x.dtype, torch.float32))


def clip_layer(tower: Any, chosen: Any) -> Any:
    """The layer of a CLIP tower whose output is projected, from a config's `vision_feature_layer`.

    Raises:
        NotImplementedError: it is another tower.
        ValueError: it is not the output of one layer.
    """
    if not isinstance(tower, CLIPVisionModel):
        raise NotImplementedError(f"of {type(tower).__name__} it is not known what it attends to, only of CLIP towers")
    layers = tower.encoder.layers
    index = (chosen - 1 if chosen > 0 else len(layers) + chosen) if isinstance(chosen, int) else -1
    if not 0 <= index < len(layers):
        raise ValueError(
            f"vision_feature_layer={chosen!r}: methods that look into the vision tower need the output of one layer"
        )
    return layers[index]
