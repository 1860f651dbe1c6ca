"""The key-value cache of a pruned prefill: shorter from the pruning layer on, and safe against being misread.

Such a cache can be continued by the context that filled it only: layers hold different lengths, so whoever asks "the"
length for positions or masks gets a wrong answer without an error. The cache object is the caller's; it is turned into
a `PrunedCache` in place, which carries what decoding needs and refuses everything else.

Shapes: B rows, M positions that survived the prefill.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Protocol, cast
from weakref import ref

import torch
from torch import Tensor
from transformers import Cache, DynamicCache

from cropl.pruning.base import NotSupportedError, PruningError
from cropl.pruning.gather import Rows
from cropl.pruning.packed import Packing


class Owner(Protocol):
    """The context that filled a cache."""

    active: bool


@dataclass(frozen=True)
class Group:
    """The layers from `start` up to the next group's: those that hold the same tokens.

    Attributes:
        start: the first decoder layer that sees only these tokens.
        rows: the survivors, as positions of the unpruned sequence.
        shift_B: long, by how much the positions of what is behind each row's survivors are smaller than unpruned;
            None where positions stay the original ones.
    """

    start: int
    rows: Rows
    shift_B: Tensor | None = None

    @property
    def length(self) -> int:
        """Positions M in the cache after the prefill."""
        return self.rows.index_BM.shape[1]


@dataclass(frozen=True)
class Prefix:
    """What decoding has to know of the pruned prefill.

    Attributes:
        owner: the context that filled the cache.
        full_length: positions S of the unpruned sequence, padding included.
        next_B: long, the position of the token behind each unpruned row.
        padded, right_padded: whether there was padding, and whether a row ended in it.
        groups: by ascending `start`.
    """

    owner: ref[Owner]
    full_length: int
    next_B: Tensor
    padded: bool
    right_padded: bool
    groups: tuple[Group, ...]

    def group(self, layer: int) -> Group | None:
        """The group that `layer` belongs to; None in front of the first prune."""
        return next((group for group in reversed(self.groups) if group.start <= layer), None)


class PrunedCache(DynamicCache):
    """A `DynamicCache` whose layers hold different lengths. Made by `adopt`, never constructed."""

    prefix: Prefix
    packing: Packing | None = None
    """Set while a prefill runs packed rows: attention gets them as they are, and the cache pads them."""

    @staticmethod
    def adopt(cache: Cache, prefix: Prefix) -> PrunedCache:
        """Turn the (empty or partly filled) cache of a running prefill into a `PrunedCache`, in place."""
        assert type(cache) in (DynamicCache, PrunedCache)  # what check_cache lets through
        cache.__class__ = PrunedCache
        adopted = cast(PrunedCache, cache)
        adopted.prefix = prefix
        return adopted

    def release(self) -> None:
        """Back to a plain `DynamicCache` (after `reset`, for the next prefill)."""
        del self.prefix
        self.__class__ = DynamicCache  # type: ignore[assignment]

    def update(
        self, key_states: Tensor, value_states: Tensor, layer_idx: int, *args: Any, **kwargs: Any
    ) -> tuple[Tensor, Tensor]:
        owner = self.prefix.owner()
        if owner is None or not owner.active:
            raise PruningError(
                "this key-value cache was filled inside pruned(...) and cannot be continued outside of it: "
                "its layers hold different tokens; continue inside the context, or prefill again"
            )
        if self.packing is None:
            return super().update(key_states, value_states, layer_idx, *args, **kwargs)
        keys, values = self.packing.pad_heads(key_states), self.packing.pad_heads(value_states)
        super().update(keys, values, layer_idx, *args, **kwargs)
        return key_states, value_states

    def crop(self, tokens_to_remove: int) -> None:
        generated = self.get_seq_length(len(self.layers) - 1) - self.prefix.groups[-1].length
        if abs(tokens_to_remove) > generated:
            raise NotSupportedError(
                f"cannot crop {abs(tokens_to_remove)} tokens of a pruned cache, only {generated} follow the prompt: "
                "assisted decoding is not supported by pruning"
            )
        super().crop(tokens_to_remove)

    def reorder_cache(self, beam_idx: torch.LongTensor) -> None:
        super().reorder_cache(beam_idx)
        self._select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        super().batch_repeat_interleave(repeats)
        self._select(torch.arange(len(self.prefix.next_B)).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._select(indices)

    def _select(self, rows: Tensor) -> None:
        def chosen(x_B: Tensor) -> Tensor:
            return x_B[rows.to(x_B.device)]

        groups = tuple(
            Group(group.start, group.rows.select(rows), None if group.shift_B is None else chosen(group.shift_B))
            for group in self.prefix.groups
        )
        self.prefix = replace(self.prefix, groups=groups, next_B=chosen(self.prefix.next_B))


def check_cache(cache: Any) -> None:
    """Raise `NotSupportedError` unless pruning can keep its books in this cache (None is fine)."""
    if cache is None or isinstance(cache, PrunedCache):
        return
    if type(cache) is not DynamicCache:
        raise NotSupportedError(
            f"{type(cache).__name__} is not supported by pruning, whose layers hold different lengths: "
            "use the default DynamicCache (no cache_implementation)"
        )
    if any(cache.is_sliding):
        raise NotSupportedError("sliding-window attention is not supported by pruning: its layers forget old tokens")
