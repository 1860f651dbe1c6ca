"""What the pruning bench runs: the vision tower, the localizer, a prefill and an answer, dense or pruned.

Shapes: B rows, L decoder layers.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cropl.bench.device import PeakMemory
from cropl.bench.prune.inputs import Arm, pictures, prompts
from cropl.bench.prune.shapes import Shape, build
from cropl.bench.prune.time import Stamper
from cropl.metrics.cost import attention_flops, decoder_flops, kv_bytes, linear_flops
from cropl.models.inputs import as_encoder_output
from cropl.models.vlm import VLM
from cropl.pruning import Patch, pruned

LOCATING_STEPS = 3
"""Decoding steps behind the localizer's prefill: four coordinates."""


Stamp = Callable[[], None]


def nothing() -> None:
    """A stamp that nobody reads."""


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
    def encode(self) -> list[Tensor]:
        """Run the vision tower and projector: the visual tokens of each question."""
        width = self.vlm.decoder.config.hidden_size
        tokens = torch.cat(self.vlm.encode_prepared(*self.pictures))
        return list(tokens.view(self.batch, self.shape.visual_tokens, width))

    @torch.inference_mode()
    def prefill(self, arm: Arm | None, stamp: Stamp = nothing) -> tuple[Any, Patch | None]:
        """The cache of a prefill, and the patch that pruned it; `stamp` is called around the tower where it runs."""
        with self.pruned(arm, stamp) as (patch, call):
            return self.run(call), patch

    @torch.inference_mode()
    def answer(self, arm: Arm | None, tokens: int, stamp: Stamp) -> None:
        """Prefill and greedy decoding of this many tokens; `stamp` is called as in `prefill`, and after each token."""
        with self.pruned(arm, stamp) as (_, call):
            stopping = Stamper(stamp).as_list()
            self.vlm.model.generate(**call, max_new_tokens=tokens, stopping_criteria=stopping)

    @contextmanager
    def pruned(self, arm: Arm | None, stamp: Stamp = nothing) -> Iterator[tuple[Patch | None, dict[str, Any]]]:
        """The patch, and what the model is called with."""
        # Inside what is timed: every question has a context of its own.
        call = self.inputs.kwargs()
        if arm is None or arm.method is None:
            yield None, call
            return
        with pruned(self.vlm, arm.method, **arm.request) as patch:
            if arm.looks:
                stamp()
                call = {**call, "mm_encoder_outputs": as_encoder_output(self.encode())}
                stamp()
            yield patch, call

    def run(self, call: dict[str, Any]) -> Any:
        """The cache of a prefill."""
        return self.vlm.model(**call, use_cache=True, logits_to_keep=1).past_key_values

    @torch.inference_mode()
    def look(self, arm: Arm | None) -> Prefilled:
        """Everything of a prefill that is no time; the vision tower, where a method has to see it, is left out."""
        config, text = self.vlm.decoder.config, self.shape.text_tokens
        with self.pruned(arm) as (patch, call):
            with PeakMemory(self.vlm.device) as needed:
                cache = self.run(call)
            if patch is None or patch.visual_BL is None:
                visual = [[self.shape.visual_tokens] * self.vlm.num_layers] * self.batch
            else:
                visual = patch.visual_BL.tolist()
            held = kv_bytes(cache)
            del cache
            with FlopCounterMode(display=False) as counter:
                self.run(call)
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
