"""What `cropl check` says of a training's memory: an estimate from a model's shapes, without its weights and a GPU."""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from cropl import recipe
from cropl.models.compressor import Compressor, CompressorConfig
from cropl.models.localizer import stored_codec
from cropl.models.lora import train_rows
from cropl.models.memory import RESERVE, Batch, Memory, estimate, parameters_of, trained_numbers
from cropl.models.placement import WINDOW
from cropl.models.qwen2_vl import Qwen2VLVLM, trained_max_pixels
from cropl.models.skeleton import config_of, skeleton
from cropl.models.tuning import choose_trained
from cropl.models.vlm import VLM
from cropl.modules.compressor import CompressorModule
from cropl.modules.instruction import InstructionModule
from cropl.modules.localizer import LocalizerModule
from cropl.prompt import RegionCodec
from cropl.testbed import weights

GIB = 2**30
MACHINES = ((1, 24), (1, 80), (8, 80))
"""Numbers of GPUs, and the GiB of each."""
SMALL = GIB
"""A model whose weights, gradients and moments take less fits anywhere: nothing is said."""


def told(parsed: Any) -> list[str]:
    """Lines about the memory of a parsed training recipe; none if it is small, or no conversations are trained.

    Args:
        parsed: the configuration: `model`, `data` and `trainer`.
    """
    kind = recipe.load_object(parsed.model.class_path)
    if not issubclass(kind, InstructionModule):
        return []
    arguments = {**_defaults(kind), **dict(parsed.model.get("init_args") or {})}
    try:
        vlm, further = prepared(kind, arguments)
    except ValueError as error:
        return [f"memory: not estimated: {error}"]
    strategy = parsed.trainer.get("strategy")
    checkpointing = bool(arguments.get("activation_checkpointing"))
    replicated = isinstance(strategy, str) and strategy.startswith("ddp")

    def batch(gpus: int) -> Batch:
        return batch_of(vlm, further, arguments, _samples(parsed.data.get("init_args") or {}, gpus))

    def on(gpus: int, checkpointing: bool) -> Memory:
        return estimate(vlm, further, batch(gpus), gpus, gpus > 1 and not replicated, checkpointing)

    alone = on(1, False)
    if alone.weights + alone.gradients + alone.optimizer < SMALL:
        return []
    every, trained = (_millions(number) for number in _numbers([vlm.model, *further]))
    recomputed = "" if checkpointing else "not "
    lines = [
        f"memory: {trained} of {every} million weights train; up to {batch(1).tokens:,} tokens in a forward pass of "
        f"{batch(1).pictures} samples; activations are {recomputed}recomputed",
        f"  {'GiB on each GPU':<15} {'weights':>8} {'gradients':>9} {'AdamW':>7} {'copies':>7} {'activations':>11} "
        f"{'loss':>5} {'total':>7}",
    ]
    for gpus, size in MACHINES:
        memory = on(gpus, checkpointing)
        lines.append(f"  {f'{gpus} x {size} GB':<15} {_row(memory)}  {_verdict(memory, on(gpus, True), size)}")
    return lines


def prepared(kind: type, arguments: Mapping[str, Any]) -> tuple[VLM, list[nn.Module]]:
    """The model of a training module on the `meta` device, ready to train, and what trains beside it.

    Args:
        kind: an `InstructionModule`.
        arguments: all of its arguments.

    Raises:
        ValueError: the checkpoint's shapes are not known here, or an argument makes no sense.
    """
    name, tune = weights.resolve(arguments["checkpoint"]), arguments["tune"]
    added: Sequence[str] = ()
    if issubclass(kind, LocalizerModule):
        codec = arguments["codec"]
        added = (stored_codec(config_of(name)) if codec is None else RegionCodec(codec)).added_tokens
    vlm = skeleton(name, getattr(torch, arguments["dtype"]), added)
    choose_trained(vlm, tune, arguments["lora"], arguments["freeze_projector"])
    if added and tune != "full":
        train_rows(vlm, range(len(added)))
    if not issubclass(kind, CompressorModule):
        return vlm, []
    if arguments["compressor"] is not None:
        return vlm, [Compressor.from_pretrained(arguments["compressor"]).to("meta")]
    chosen = ("queries", "outside_queries", "anchors", "positions", "unit")
    config = CompressorConfig(vlm.decoder.config.hidden_size, **{name: arguments[name] for name in chosen})
    with torch.device("meta"):
        return vlm, [Compressor(config)]


def batch_of(vlm: VLM, further: list[nn.Module], arguments: Mapping[str, Any], samples: int) -> Batch:
    """What a forward pass computes, with pictures as large as they may be."""
    if isinstance(vlm, Qwen2VLVLM):  # as many as the picture has pixels for
        patch = int(vlm.model.config.vision_config.patch_size) * vlm.merge
        given = (arguments["model_options"] or {}).get("max_pixels")
        visual = (trained_max_pixels(vlm.model.config) if given is None else int(given)) // patch**2
    else:
        side: int = getattr(vlm, "side", 0)
        visual = int(getattr(vlm, "most_tokens", side * side))
    kept = visual
    for one in further:
        if isinstance(one, Compressor):
            kept = one.config.outside_queries + (WINDOW**2 if one.config.anchors else one.config.queries)
    return Batch.of(samples, visual, kept, arguments["max_tokens"])


def _defaults(kind: type) -> dict[str, Any]:
    """Default arguments of a module and of the modules that it passes its other arguments on to."""
    found: dict[str, Any] = {}
    for one in reversed(kind.__mro__):
        if "__init__" in vars(one):
            parameters = inspect.signature(one.__init__).parameters.values()  # type: ignore[misc]
            found.update({each.name: each.default for each in parameters if each.default is not each.empty})
    return found


def _samples(data: Mapping[str, Any], gpus: int) -> int:
    """Of a forward pass: the micro batch, else a process's share of the whole one."""
    return int(data.get("micro_batch") or data.get("batch_size") or max(1, int(data.get("global_batch") or 1) // gpus))


def _numbers(modules: list[nn.Module]) -> tuple[int, int]:
    return sum(one.numel() for one in parameters_of(modules)), trained_numbers(modules)


def _millions(number: int) -> str:
    return f"{number / 1e6:,.1f}"


def _row(memory: Memory) -> str:
    parts = (
        (memory.weights, 8), (memory.gradients, 9), (memory.optimizer, 7), (memory.copies, 7), (memory.activations, 11),
        (memory.loss, 5), (memory.total, 7),
    )  # fmt: skip
    return " ".join(f"{value / GIB:>{width}.1f}" for value, width in parts)


def _verdict(memory: Memory, recomputed: Memory, size: int) -> str:
    """A tenth of the GPU is left to what is not counted."""
    if memory.fits(size * GIB):
        return "fits"
    if recomputed.fits(size * GIB):
        return f"fits with --model.activation_checkpointing true ({recomputed.total / GIB:.1f} GiB)"
    return f"does not fit ({(1 - RESERVE) * size:.1f} GiB can be used)"
