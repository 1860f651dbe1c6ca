"""What the pruning bench runs: the vision tower, the localizer, a prefill and an answer, dense or pruned.

Shapes: B rows, L decoder layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from cropl.bench.device import PeakMemory
from cropl.bench.prune_inputs import Arm, pictures, prompts
from cropl.bench.prune_shapes import Shape, build
from cropl.bench.prune_time import Stamper
from cropl.metrics.cost import attention_flops, decoder_flops, kv_bytes, linear_flops
from cropl.models.vlm import VLM
from cropl.pruning import Patch, pruned

LOCATING_STEPS = 3
"""Decoding steps behind the localizer's prefill: four coordinates."""


@dataclass(frozen=True)
class Prefilled:
    """What a prefill took, apart from time.

    Attributes:
        visual: visual tokens in each decoder layer, by row.
        flops: that its rows need, by the formula, in all.
        linear: those of them that are no attention.
        counted: of the same matrix products, as counted: with padding, and with what a method computes to choose.
        kv_bytes: of the cache behind it.
        peak_bytes: allocated at most, beyond weights and inputs.
    """

    visual: list[list[int]]
    flops: int
    linear: int
    counted: int
    kv_bytes: int
    peak_bytes: int


class Subject:
    """A model and a batch of questions to it."""

    def __init__(self, vlm: VLM, shape: Shape, batch: int) -> None:
        self.vlm, self.shape, self.batch = vlm, shape, batch
        self.inputs = prompts(vlm, shape, batch)
        self.pictures = pictures(vlm, shape, batch)

    @torch.inference_mode()
    def encode(self) -> None:
        """Run the vision tower and projector."""
        self.vlm.encode_prepared(*self.pictures)

    @torch.inference_mode()
    def prefill(self, arm: Arm | None) -> tuple[Any, Patch | None]:
        """The cache of a prefill, and the patch that pruned it."""
        call = {**self.inputs.kwargs(), "use_cache": True, "logits_to_keep": 1}
        with self._pruned(arm) as patch:
            return self.vlm.model(**call).past_key_values, patch

    @torch.inference_mode()
    def answer(self, arm: Arm | None, tokens: int, stamp: Callable[[], None]) -> None:
        """Prefill and greedy decoding of this many tokens; `stamp` is called after each of them."""
        with self._pruned(arm):
            stopping = Stamper(stamp).as_list()
            self.vlm.model.generate(**self.inputs.kwargs(), max_new_tokens=tokens, stopping_criteria=stopping)

    @contextmanager
    def _pruned(self, arm: Arm | None) -> Iterator[Patch | None]:
        # Inside what is timed: every question has a context of its own.
        if arm is None:
            yield None
        else:
            with pruned(self.vlm, arm.method, keep=arm.keep) as patch:
                yield patch

    def look(self, arm: Arm | None) -> Prefilled:
        """Everything of a prefill that is no time."""
        config, text = self.vlm.decoder.config, self.shape.text_tokens
        with PeakMemory(self.vlm.device) as needed:
            cache, patch = self.prefill(arm)
        if patch is None or patch.visual_BL is None:
            visual = [[self.shape.visual_tokens] * self.vlm.num_layers] * self.batch
        else:
            visual = patch.visual_BL.tolist()
        held = kv_bytes(cache)
        del cache
        with FlopCounterMode(display=False) as counter:
            self.prefill(arm)
        products = counter.get_flop_counts().get("Global", {})
        lengths = [[text + tokens for tokens in row] for row in visual]
        return Prefilled(
            visual=visual,
            flops=sum(decoder_flops(config, row) for row in lengths),
            linear=sum(linear_flops(config, row) for row in lengths),
            counted=sum(flops for operation, flops in products.items() if "attention" not in str(operation)),
            kv_bytes=held,
            peak_bytes=needed.bytes,
        )


class Localizing:
    """A localizer's work on a batch: tower, prefill and three steps, with the cache of an ordinary decoding."""

    def __init__(
        self, shape: Shape, batch: int, device: torch.device, dtype: torch.dtype, vlm: VLM | None = None
    ) -> None:
        self.vlm = build(shape, device, dtype) if vlm is None else vlm
        self.subject = Subject(self.vlm, shape, batch)
        config, layers = self.vlm.decoder.config, self.vlm.num_layers
        length = shape.visual_tokens + shape.text_tokens
        pairs = sum(length + step + 1 for step in range(LOCATING_STEPS))  # a pair costs twice its share of a triangle
        self.flops = shape.vision_flops(self.vlm.model.config) + decoder_flops(config, [length] * layers, logits=0)
        self.flops += linear_flops(config, [LOCATING_STEPS] * layers, logits=0)
        self.flops += 2 * attention_flops(config, [1] * layers) * pairs
        self.pixels = shape.pixels(self.vlm.model.config)

    @torch.inference_mode()
    def __call__(self) -> None:
        """Locate the batch once. The head's eight rows that a coordinate takes are left out."""
        self.subject.encode()
        base: Any = self.vlm.base
        cache = base(**self.subject.inputs.kwargs(), use_cache=True).past_key_values
        ids_B1 = self.subject.inputs.tensors["input_ids"][:, -1:]
        for _ in range(LOCATING_STEPS):
            base(input_ids=ids_B1, past_key_values=cache, use_cache=True)
