"""Consecutive decoder layers at one batch size and one length: their key-value buffers, and their compiled functions.

The layers are the model's own modules, called with the cache and position embeddings that the model itself would give
them. Nothing in here depends on what was kept, so whatever is compiled serves every region that fits the length.

Shapes: B rows, T positions of the bucket, N new tokens, M = T + N positions of the cache, D hidden width, C vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import FunctionType
from typing import Any, cast

import torch
from torch import Tensor
from transformers import Cache
from transformers.cache_utils import StaticLayer

Compile = bool | str | Mapping[str, Any]
"""Whether layers are compiled: by inductor (True), in one of its modes, or with these options of `torch.compile`."""
Rope = tuple[Tensor, ...]
Function = Callable[..., Any]


class Compiler:
    """Compiles functions for the shapes that they are called with first, or leaves them as they are.

    Args:
        compile: see `Compile`.
    """

    def __init__(self, compile: Compile) -> None:
        if not isinstance(compile, bool | str | Mapping):
            raise ValueError(f"compile={compile!r}: give True, False, a mode such as 'reduce-overhead', or options")
        self.active = compile is not False
        given: dict[str, Any] = dict(compile) if isinstance(compile, Mapping) else {}
        self.options = (
            {"fullgraph": True, "dynamic": False} | given | ({"mode": compile} if isinstance(compile, str) else {})
        )

    def begin_step(self) -> None:
        """Before a prefill or a step: what compiled functions returned in the last one may be overwritten."""
        if self.active:
            torch.compiler.cudagraph_mark_step_begin()

    def __call__(self, function: Function, name: str) -> Function:
        """The function under a name of its own, which profiles and compile logs tell."""
        if not self.active:
            return function
        # Compiled code is kept by code object, a few shapes each: every length gets its own.
        code = cast(FunctionType, function).__code__.replace(co_name=name)
        own = FunctionType(code, cast(FunctionType, function).__globals__, name)
        compiled: Function = torch.compile(own, **self.options)
        return compiled


class Segment:
    """Decoder layers `start` up to `end`, for batches of B rows of T tokens and N new ones.

    Args:
        decoder: whose layers they are.
        start, end: the first of them, and the one behind the last.
        rows, length, new: B, T and N.
        hidden: tells type and device of hidden states.
        compiler: of its two functions.
    """

    def __init__(
        self, decoder: Any, start: int, end: int, rows: int, length: int, new: int, hidden: Tensor, compiler: Compiler
    ) -> None:
        self.start, self.end, self.length = start, end, length
        self.modules = list(decoder.layers[start:end])
        self.buffers = [_buffer(decoder.config, rows, length + new, hidden) for _ in self.modules]
        name = f"layers_{start}_{end}_batch_{rows}_length_{length}"
        self._prefill, self._step = compiler(_prefill, f"prefill_{name}"), compiler(_step, f"step_{name}")
        self._length_B = hidden.new_empty(0)
        self._rope: Rope = ()

    @property
    def kv_bytes(self) -> int:
        """Bytes of its keys and values."""
        parts = [part for buffer in self.buffers for part in (buffer.keys, buffer.values) if part is not None]
        return sum(part.numel() * part.element_size() for part in parts)

    def prefill(self, cache: Cache, hidden_BTD: Tensor, rope: Rope) -> Tensor:
        """Run a prompt through the layers, and begin the cache anew with it.

        Args:
            cache: of all layers of the model.
            hidden_BTD: padded on the right.
            rope: (cos, sin) of its positions.
        """
        hidden: Tensor = self._prefill(self.modules, self.buffers, cache, hidden_BTD, rope)
        return hidden

    def follow(self, length_B: Tensor, rope: Rope) -> None:
        """Before steps: how long the rows of the prompt are, and (cos, sin) of the N positions behind them."""
        self._length_B, self._rope = length_B, rope

    def step(self, cache: Cache, hidden_B1D: Tensor, number: int) -> Tensor:
        """Run the new token of this number, 0-based, through the layers."""
        rope = tuple(part[:, number : number + 1].clone() for part in self._rope)
        hidden: Tensor = self._step(self.modules, self.buffers, cache, hidden_B1D, rope, self._length_B, self.length)
        return hidden


def head(norm: Any, project: Any, hidden_BD: Tensor) -> tuple[Tensor, Tensor]:
    """Logits (B, C) behind the last layer, and the likeliest token of each row."""
    logits_BC = project(norm(hidden_BD))
    return logits_BC, logits_BC.float().argmax(-1)  # in single precision, as `generate` compares them


def _prefill(modules: Sequence[Any], buffers: Sequence[Any], cache: Cache, hidden_BTD: Tensor, rope: Rope) -> Tensor:
    for buffer in buffers:
        buffer.cumulative_length.zero_()
    return _through(modules, cache, hidden_BTD, rope, None)


def _step(
    modules: Sequence[Any],
    buffers: Sequence[Any],
    cache: Cache,
    hidden_B1D: Tensor,
    rope: Rope,
    length_B: Tensor,
    length: int,
) -> Tensor:
    column_M = torch.arange(buffers[0].max_cache_len, device=hidden_B1D.device)
    prompt_BM = column_M < length_B[:, None]
    since_M = (column_M >= length) & (column_M <= buffers[0].cumulative_length)  # new tokens stand behind the bucket
    return _through(modules, cache, hidden_B1D, rope, (prompt_BM | since_M)[:, None, None])


def _through(modules: Sequence[Any], cache: Cache, hidden: Tensor, rope: Rope, mask_B11M: Tensor | None) -> Tensor:
    for module in modules:
        hidden = module(
            hidden,
            attention_mask=mask_B11M,
            position_ids=None,
            past_key_values=cache,
            use_cache=True,
            position_embeddings=rope,
        )
    return hidden


def _buffer(config: Any, rows: int, length: int, hidden: Tensor) -> StaticLayer:
    buffer = StaticLayer(max_cache_len=length)
    width = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    shape = hidden.new_empty(rows, config.num_key_value_heads, 0, width)
    buffer.lazy_initialization(shape, shape)
    return buffer
