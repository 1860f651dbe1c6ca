"""What a method keeps, asked before the prefill: for methods that need nothing of what the layers compute.

Shapes: B rows, S positions of the prompt, D hidden width.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, NoReturn, cast

import torch
from torch import Tensor

from cropl.models.attention import LayerInput
from cropl.models.vlm import VLM
from cropl.pruning.base import InnerLLM, NotSupportedError, PreLLM
from cropl.pruning.positions import Unpruned
from cropl.pruning.request import Request, keep_mask
from cropl.pruning.run import Kwargs, Prefill
from cropl.pruning.schedule import Schedule


@dataclass(frozen=True)
class Stage:
    """The layers from `start` up to the next stage's: those that see the same tokens.

    Attributes:
        start: the first of them.
        keep_BS: bool, the positions of the prompt that they see.
        position: long, positions of the prompt's tokens for the rotary embedding, `(B, S)` or `(3, B, S)`; what they
            are of tokens that are gone does not matter.
        next_B: long, the position of the token behind each row.
        kept: visual tokens of each row.
    """

    start: int
    keep_BS: Tensor
    position: Tensor
    next_B: Tensor
    kept: tuple[int, ...]


def check_ahead(method: Any) -> None:
    """Raise `NotSupportedError` unless what the method keeps may be known before the prefill.

    It may not be if it compresses, looks at attention, or changes the hidden states of what it keeps.
    """
    for part in method.methods if isinstance(method, Schedule) else (method,):
        computes = isinstance(part, InnerLLM) and (part.watches or type(part).rewrite is not InnerLLM.rewrite)
        if computes or isinstance(part, PreLLM):
            raise NotSupportedError(
                f"{type(part).__name__} decides by what the layers compute, or makes tokens of its own: StaticRunner "
                "takes methods whose kept tokens are known before the prefill (ILP, UniformTokens, RandomTokens, "
                "Dense, a Schedule of them); use pruned(...) for this one"
            )


def stages(method: InnerLLM, prefill: Prefill, unpruned: Unpruned, num_layers: int, hidden_BSD: Tensor) -> list[Stage]:
    """What the decoder's layers see, by ascending `start`; the first stage starts at 0.

    Args:
        method: see `check_ahead`.
        prefill, unpruned: the prompt; the former is used up.
        num_layers: L.
        hidden_BSD: what enters layer 0.

    Raises:
        NotSupportedError: the method asks for hidden states of a later layer, or for attention.
        ValueError: it keeps no visual token of a row.
    """
    position = unpruned.position.expand(*unpruned.position.shape[:-2], *prefill.full_BS.shape)
    found = [Stage(0, prefill.full_BS, position, unpruned.next_B, tuple(prefill.total_B))]

    def attention(layer: int) -> LayerInput:
        _refuse(method)

    for layer in method.layers:
        if layer >= num_layers:
            break
        seen = hidden_BSD if layer == 0 else cast(Tensor, _NotYet(method))
        pruning, last = prefill.prune(method, layer, seen, attention), found[-1]
        stage = replace(last, start=layer) if pruning is None else _pruned(method, prefill, unpruned, last, pruning[1])
        found = [stage] if layer == 0 else [*found, stage]
    return found


def grown(vlm: VLM, request: Request, stage: Stage, lengths: Sequence[int], bucket: int, kwargs: Kwargs) -> Request:
    """The request with each region grown to the tokens that a bucket has room for.

    Args:
        vlm: knows the token grids.
        request: regions, and no masks.
        stage: what they leave.
        lengths: tokens of each row of it.
        bucket: the length to fill.
        kwargs: of the forward.

    Raises:
        ValueError: masks were given.
    """
    if request.keep is not None:
        raise ValueError("dilate grows regions, and keep has none: give regions, or a runner without dilate")
    visual_B = vlm.visual_mask(kwargs["input_ids"]).sum(1).tolist()
    places = request.places(vlm, visual_B, kwargs)
    room = [min(total, kept + bucket - length) for total, kept, length in zip(visual_B, stage.kept, lengths)]
    masks = [None if one is None else keep_mask(one[1], one[0], tokens) for one, tokens in zip(places, room)]
    return Request(None, None, None, masks)


def _pruned(method: InnerLLM, prefill: Prefill, unpruned: Unpruned, last: Stage, kept: list[int]) -> Stage:
    """The stage behind a prune that dropped something, and left so many visual tokens in each row."""
    group = prefill.groups[-1]
    index_BM, real_BM = group.rows.index_BM, group.rows.real_BM
    keep_BS = torch.zeros_like(prefill.full_BS).scatter(1, index_BM, real_BM)  # what padding points at is gone
    position, next_B = last.position, last.next_B
    if method.positions == "compact":
        new = prefill.compact(unpruned)
        shift_B = prefill.groups[-1].shift_B
        assert shift_B is not None
        position = position.scatter(-1, index_BM.to(new.device).expand(new.shape), new)
        next_B = unpruned.next_B - shift_B
    return Stage(group.start, keep_BS, position, next_B, tuple(kept))


class _NotYet:
    """Stands for hidden states that no layer has computed yet."""

    def __init__(self, method: InnerLLM) -> None:
        self._method = method

    def __getattr__(self, name: str) -> NoReturn:
        _refuse(self._method)

    def __getitem__(self, index: Any) -> NoReturn:
        _refuse(self._method)


def _refuse(method: InnerLLM) -> NoReturn:
    raise NotSupportedError(
        f"{type(method).__name__} chooses by what the layers in front of it compute, which StaticRunner does not know "
        "before the prefill: use pruned(...) for this method"
    )
