"""Memory of a training step on each GPU, from the shapes of a model alone.

Exact are weights, gradients and AdamW's states: what trains has float32 masters, float32 gradients and two float32
moments; what is frozen stays in the type it was loaded in. Divided by the processes where they are sharded.

What autograd keeps of a decoder layer, in bytes per token, with c bytes per number of the compute type (2 for
bfloat16), D the width, F the width inside the MLP, A = heads x head width, S the length of a row:

    always                    8 D + 4 c A + 3 c F + c S + 4 heads + 8
    its weights train         + 4 c D + c F           (2 c D for the norms, c (A + F) + c D for the linear layers)
      through autocast        + 8 D + c D             (norms in float32, a cast input for each linear layer)
    each adapter of rank r    + (c + 1) I + c r       (I its input's width; 1 for the mask of its dropout)

With activation checkpointing a layer keeps its input, 4 D, and one layer at a time all of the above. Around the layers
8 D per token are kept, and per visual token c (in + out) of every linear layer of the projector, and 4 c D for PLC. The
losses are computed chunk by chunk. The frozen vision tower leaves nothing behind.

Not counted: CUDA's own memory, NCCL's buffers and what the allocator cannot use; `RESERVE` stands for them.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from cropl.models.token_losses import CHUNK
from cropl.models.vlm import VLM

RESERVE = 0.1
"""Share of a GPU's memory that is left to what is not counted."""
MASTER, MOMENTS = 4, 8
"""Bytes of a trained weight, and of AdamW's two moments of it."""


@dataclass(frozen=True)
class Batch:
    """What one forward pass computes.

    Attributes:
        rows: of packed documents.
        length: S, tokens of a row.
        pictures: that the tower sees.
        visual: tokens of a picture behind the projector.
    """

    rows: int
    length: int
    pictures: int
    visual: int

    @classmethod
    def of(cls, samples: int, visual: int, kept: int, longest: int, text: int = 300) -> Batch:
        """A batch of more text than usual: one sample of the ``longest`` tokens that are allowed, others of ``text``.

        Args:
            samples: of a forward pass.
            visual: tokens of a picture behind the projector.
            kept: those of them that the decoder sees.
            longest: tokens that a sample is cut to.
            text: tokens of the other samples' texts; LLaVA's conversations have about 220, Visual-CoT's 50.
        """
        length = max(longest, kept + 1)
        tokens = length + (samples - 1) * min(length, kept + text)
        return cls(math.ceil(tokens / length), length, samples, visual)

    @property
    def tokens(self) -> int:
        """Tokens that the decoder sees."""
        return self.rows * self.length


@dataclass(frozen=True)
class Memory:
    """Bytes on one GPU at the highest point of a step.

    Attributes:
        weights: masters of what trains, and what is frozen.
        gradients: of what trains.
        optimizer: AdamW's moments.
        copies: of weights in the compute type: those gathered from other processes, or autocast's.
        activations: what is kept for the backward pass, and the largest gradients in it.
        loss: of the chunks of logits.
    """

    weights: int
    gradients: int
    optimizer: int
    copies: int
    activations: int
    loss: int

    @property
    def total(self) -> int:
        """All of it."""
        return sum(getattr(self, one.name) for one in fields(self))

    def fits(self, size: int) -> bool:
        """Whether it fits into a GPU of this many bytes."""
        return self.total <= (1 - RESERVE) * size


def estimate(
    vlm: VLM,
    further: Sequence[nn.Module],
    batch: Batch,
    processes: int = 1,
    sharded: bool = False,
    checkpointing: bool = False,
    compute: torch.dtype = torch.bfloat16,
) -> Memory:
    """Memory of a training step on one GPU.

    Args:
        vlm: the model, on any device; what trains has ``requires_grad``.
        further: what trains beside it: a compressor, or nothing.
        batch: of one process.
        processes: that share the weights, if they are ``sharded`` (FSDP2); without sharding each has all of them.
        sharded: whether FSDP2 gathers the layers one after the other; autocast otherwise.
        checkpointing: of activations.
        compute: type of the computation.
    """
    c = compute.itemsize
    modules = [vlm.model, *further]
    trained, frozen = trained_numbers(modules), frozen_bytes(modules)
    parts = processes if sharded else 1
    head = vlm.model.get_output_embeddings()
    through = _table(head).requires_grad or parametrize.is_parametrized(head)
    return Memory(
        weights=(MASTER * trained + frozen) // parts,
        gradients=MASTER * trained // parts,
        optimizer=MOMENTS * trained // parts,
        copies=_gathered(vlm, modules, c) if sharded else _casts(vlm, modules, compute),
        activations=_activations(vlm, batch, c, not sharded, checkpointing, bool(further)),
        loss=12 * CHUNK + ((MASTER + c) * _table(head).numel() if through else 0),
    )


def parameters_of(modules: Iterable[nn.Module]) -> list[nn.Parameter]:
    """Each parameter once, also where it is tied."""
    return list({id(one): one for module in modules for one in module.parameters()}.values())


def trained_numbers(modules: Iterable[nn.Module]) -> int:
    """How many numbers train."""
    return sum(one.numel() for one in parameters_of(modules) if one.requires_grad)


def frozen_bytes(modules: Iterable[nn.Module]) -> int:
    """Bytes of the weights that do not train, in the type they have."""
    return sum(one.numel() * one.element_size() for one in parameters_of(modules) if not one.requires_grad)


def layer_bytes(vlm: VLM, length: int, c: int, autocast: bool) -> int:
    """What a decoder layer keeps for the backward pass of each token, see above.

    Args:
        vlm: the model; what trains has ``requires_grad``.
        length: S, of a row.
        c: bytes of the compute type.
        autocast: whether weights are cast to it one by one, or have it already.
    """
    config, layer = vlm.decoder.config, vlm.shard_units[0]
    width, inner, heads = config.hidden_size, config.intermediate_size, config.num_attention_heads
    attended = heads * (getattr(config, "head_dim", None) or width // heads)
    kept = 8 * width + 4 * c * attended + 3 * c * inner + c * length + 4 * heads + 8
    if any(one.requires_grad for name, one in layer.named_parameters() if ".lora_" not in name):
        kept += 4 * c * width + c * inner + (8 * width + c * width if autocast else 0)
    for module in layer.modules():
        adapters, dropouts = (getattr(module, name, {}) for name in ("lora_A", "lora_dropout"))
        for name, adapter in adapters.items():
            dropped = isinstance(dropouts[name], nn.Dropout)
            kept += (c + dropped) * adapter.in_features + c * adapter.out_features
    return kept


def _activations(vlm: VLM, batch: Batch, c: int, autocast: bool, checkpointing: bool, compressed: bool) -> int:
    width, inner, layers = vlm.decoder.config.hidden_size, vlm.decoder.config.intermediate_size, vlm.num_layers
    layer = layer_bytes(vlm, batch.length, c, autocast)
    backward = 3 * c * inner + 8 * width  # the largest gradients that exist at a time
    per_token = (4 * width * layers + layer if checkpointing else layer * layers) + backward + 8 * width
    linears = [one for one in vlm.projector.modules() if isinstance(one, nn.Linear)]
    per_visual = c * sum(one.in_features + one.out_features for one in linears) + (4 * c * width if compressed else 0)
    return per_token * batch.tokens + per_visual * batch.pictures * batch.visual


def _casts(vlm: VLM, modules: Sequence[nn.Module], compute: torch.dtype) -> int:
    """Autocast keeps the matrices in the compute type until the backward pass is through; not the tower's."""
    embedding, head = (_table(one) for one in (vlm.model.get_input_embeddings(), vlm.model.get_output_embeddings()))
    looked_up = set() if embedding is head else {id(embedding)}  # never multiplied
    matrices = parameters_of([vlm.decoder, vlm.projector, vlm.model.get_output_embeddings(), *modules[1:]])
    kept = (one for one in matrices if one.ndim > 1 and id(one) not in looked_up)
    cast = sum(one.numel() for one in kept if one.requires_grad or one.dtype != compute)
    return compute.itemsize * (cast + _row_copies(vlm))


def _gathered(vlm: VLM, modules: Sequence[nn.Module], c: int) -> int:
    """The root's unit while the step lasts, with its gradients; two layers, one of them with gradients to be sent."""
    unit = parameters_of(vlm.shard_units[:1])
    inside = {id(one) for layer in vlm.shard_units for one in layer.parameters()}
    root = [one for one in parameters_of(modules) if id(one) not in inside]
    in_root, in_unit = (sum(one.numel() for one in part) for part in (root, unit))
    of_root, of_unit = (sum(one.numel() for one in part if one.requires_grad) for part in (root, unit))
    return c * (in_root + of_root + 2 * in_unit + of_unit + _row_copies(vlm)) + MASTER * of_unit


def _row_copies(vlm: VLM) -> int:
    """Numbers of the tables that are put together anew where only some of their rows train."""
    tables = (vlm.model.get_input_embeddings(), vlm.model.get_output_embeddings())
    return sum(_table(one).numel() for one in tables if parametrize.is_parametrized(one))


def _table(module: Any) -> nn.Parameter:
    """The stored table of an embedding or a head, of which some rows may train."""
    stored: nn.Parameter = (
        module.parametrizations.weight.original if parametrize.is_parametrized(module) else module.weight
    )
    return stored
