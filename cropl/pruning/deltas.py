"""Rope deltas of M-RoPE models: a state that every prefill leaves on the model, for the steps that follow.

A prompt with a picture ends at a smaller position than it has tokens; `model.model.rope_deltas` holds the difference of
the last prefill. Whoever decodes two prompts in turn would give one the other's positions: here every key-value cache
keeps its own, and the model gets back what it had when the context is left.
"""

from __future__ import annotations

from typing import Any

from torch import nn
from transformers import Cache

_NAME = "rope_deltas"


class RopeDeltas:
    """The deltas of one model's caches; does nothing for models without.

    Args:
        base: the module that carries them.

    Attributes:
        known: whether the model has any.
    """

    def __init__(self, base: nn.Module) -> None:
        self._base, self.known = base, hasattr(base, _NAME)
        self._outside = getattr(base, _NAME, None)

    def note(self, output: Any) -> None:
        """After a prefill: those that it left belong to the cache in its output, if there is one."""
        outputs = (output if isinstance(output, tuple) else output.values()) if self.known and output else ()
        for value in outputs:
            if isinstance(value, Cache):
                setattr(value, _NAME, getattr(self._base, _NAME))

    def recall(self, cache: Cache) -> None:
        """Before a step on this cache: those of its own prefill."""
        if self.known:
            setattr(self._base, _NAME, getattr(cache, _NAME, self._outside))

    def restore(self) -> None:
        """Those that the model had at the beginning."""
        if self.known:
            setattr(self._base, _NAME, self._outside)
