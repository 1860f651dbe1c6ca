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


class Owner(Protocol):
    """The context that filled a cache."""

    active: bool


@dataclass(frozen=True)
class Group:
    """The layers from `start` up to the next group's: those that hold the same tokens.

    Attributes:
        start: the first decoder layer that sees only these tokens.
        rows: the survivors, as positions of the unpruned sequence.
        dropped_B: long, how many tokens each row has lost in total.
    """

    start: int
    rows: Rows
    dropped_B: Tensor

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
        right_padded: whether a row ended in padding.
        groups: by ascending `start`.
    """

    owner: ref[Owner]
    full_length: int
    right_padded: bool
    groups: tuple[Group, ...]

    def group(self, layer: int) -> Group | None:
        """The group that `layer` belongs to; None in front of the first prune."""
        return next((group for group in reversed(self.groups) if group.start <= layer), None)


class PrunedCache(DynamicCache):
    """A `DynamicCache` whose layers hold different lengths. Made by `adopt`, never constructed."""

    prefix: Prefix

    @staticmethod
    def adopt(cache: Cache, prefix: Prefix) -> None:
        """Turn the (empty or partly filled) cache of a running prefill into a `PrunedCache`, in place."""
        assert type(cache) in (DynamicCache, PrunedCache)  # what check_cache lets through
        cache.__class__ = PrunedCache
        cast(PrunedCache, cache).prefix = prefix

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
        return super().update(key_states, value_states, layer_idx, *args, **kwargs)

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
        rows = len(self.prefix.groups[0].dropped_B)
        self._select(torch.arange(rows).repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        super().batch_select_indices(indices)
        self._select(indices)

    def _select(self, rows: Tensor) -> None:
        groups = tuple(
            replace(group, rows=group.rows.select(rows), dropped_B=group.dropped_B[rows.to(group.dropped_B.device)])
            for group in self.prefix.groups
        )
        self.prefix = replace(self.prefix, groups=groups)


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
