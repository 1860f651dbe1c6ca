"""What a patch costs in Python: a model so small that little else is left, with and without a patch on it."""

from __future__ import annotations

from contextlib import nullcontext
from functools import partial
from statistics import median
from typing import Any

import torch
from torch import Tensor
from transformers import CLIPVisionConfig, LlamaConfig, LlavaConfig, LlavaForConditionalGeneration

from cropl.bench.prune.inputs import prompts
from cropl.bench.prune.shapes import Shape
from cropl.bench.prune.time import Clock, median_interval, pinned, turns
from cropl.models.llava import LlavaVLM
from cropl.models.vlm import VLM
from cropl.pruning import ILP, Dense, InnerLLM, pruned

LAYERS = 32
SIDE = 4


def tiny(layers: int = LAYERS) -> VLM:
    """A LLaVA of width 16 with `SIDE` x `SIDE` visual tokens."""
    text = LlamaConfig(
        vocab_size=1100, hidden_size=16, intermediate_size=16, num_hidden_layers=layers, num_attention_heads=2,
        max_position_embeddings=128,
    )  # fmt: skip
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=14 * SIDE,
        patch_size=14,
    )  # fmt: skip
    config = LlavaConfig(vision_config=vision, text_config=text, image_token_index=1099)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return LlavaVLM(LlavaForConditionalGeneration._from_config(config, attn_implementation="sdpa").eval())


SHAPE = Shape("tiny", "for the overhead alone", {}, (SIDE, SIDE), (1,), text_tokens=8)

CASES: dict[str, tuple[InnerLLM, bool]] = {
    "dense": (Dense(), True),
    "ilp, whole image": (ILP(0), True),
    "ilp, half": (ILP(0), False),
}
"""Methods, and whether they keep everything. The hooks of an `ILP(0)` are on every layer."""


def overhead(rounds: int, layers: int = LAYERS) -> list[dict[str, Any]]:
    """A row for each of `CASES`: microseconds a layer beyond the unpatched model, of a prefill and a decoding step.

    Entering and leaving `pruned` does not count, as it is no work of the layers; it has a figure of its own.
    """
    vlm, clock = tiny(layers), Clock(torch.device("cpu"), 1)
    inputs = prompts(vlm, SHAPE, 1)

    @torch.inference_mode()
    def prefill() -> Any:
        return vlm.model(**inputs.kwargs(), use_cache=True, logits_to_keep=1).past_key_values

    @torch.inference_mode()
    def run(method: InnerLLM | None, keep: list[Tensor]) -> tuple[float, float, float]:
        def enter() -> float:
            def work() -> None:
                with pruned(vlm, method or Dense(), keep=keep):
                    pass

            return clock(work)

        entering = enter()
        with nullcontext() if method is None else pruned(vlm, method, keep=keep):
            caches: list[Any] = []
            filling = clock(lambda: caches.append(prefill()))
            ids_B1 = inputs.tensors["input_ids"][:, -1:]
            stepping = clock(lambda: vlm.model(input_ids=ids_B1, past_key_values=caches[0], use_cache=True))
        return filling, stepping, entering

    rows = []
    with pinned(1):
        for name, (method, whole) in CASES.items():
            keep = [torch.ones(SHAPE.visual_tokens, dtype=torch.bool)]
            if not whole:
                keep[0][::2] = False
            patched = partial(run, method, keep)
            patched()  # what is only done once
            pairs = turns(rounds, patched, partial(run, None, keep))
            row: dict[str, Any] = {"case": name, "layers": layers, "rounds": rounds}
            for index, part in enumerate(("prefill", "step")):
                extra = [1e6 * (ours[index] - theirs[index]) / layers for ours, theirs in pairs]
                row[part] = {"us_per_layer": median(extra), "interval": list(median_interval(extra))}
                row[part]["unpatched_us_per_layer"] = 1e6 * median(theirs[index] for _, theirs in pairs) / layers
            rows.append({**row, "enter_us": 1e6 * median(ours[2] for ours, _ in pairs)})
    return rows
