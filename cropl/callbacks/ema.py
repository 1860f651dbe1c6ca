"""Exponential moving averages of the weights that train: steadier than the weights of any one step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor, distribute_tensor

from cropl.callbacks.export import Export


class EMA(L.Callback):
    """Validates and exports averages of the weights over optimizer steps, and trains the weights themselves.

    Frozen weights have no averages and cost no memory (Lightning's ``WeightAveraging`` copies the whole module). Under
    FSDP2 each process averages its own shard. Checkpoints hold the weights as ever, and the averages, whole, with this
    callback's state: a training that is continued goes on with both, on any number of processes. When training ends,
    the averages take the place of the weights.

    Args:
        decay: share of the average that stays at a step.
        start: optimizer steps before averaging begins; until then the average is the weights.

    Raises:
        ValueError: the decay is no share, ``Export`` is listed ahead of this callback, or the averages of a checkpoint
            are those of another module.
    """

    def __init__(self, decay: float = 0.999, start: int = 0) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"EMA decay {decay}: must lie between 0 and 1")
        self.decay, self.start = decay, start
        self._averages: dict[str, Tensor] = {}  # of each trained weight, or of this process's shard of it
        self._layout: dict[str, nn.Parameter] = {}
        self._restored: dict[str, Tensor] = {}
        self._step = 0
        self._swapped = False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Whatever is exported at the end must come after the averages have taken their place."""
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
        earlier = callbacks[: callbacks.index(self)]
        if any(isinstance(callback, Export) for callback in earlier):
            raise ValueError(
                "list EMA ahead of Export in trainer.callbacks, or the averages are not exported: `cropl cp` copies a "
                "recipe, to be edited"
            )
        if stage == "fit":
            trainer.save_checkpoint = self._with_weights(trainer.save_checkpoint, pl_module)  # type: ignore[method-assign]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        restored, self._restored = self._restored, {}
        self._layout = {name: p for name, p in pl_module.named_parameters() if p.requires_grad}
        if restored and restored.keys() != self._layout.keys():
            raise ValueError("the checkpoint's averages (EMA) are of other weights than those that train here")
        self._averages, self._step = {}, trainer.global_step
        for name, parameter in self._layout.items():
            whole = restored.get(name)
            if whole is None:
                self._averages[name] = _local(parameter).float().clone()
            elif isinstance(parameter, DTensor):
                whole = whole.to(parameter.device)
                shard = distribute_tensor(whole, parameter.device_mesh, parameter.placements, src_data_rank=None)
                self._averages[name] = shard.to_local().float().clone()
            else:
                self._averages[name] = whole.to(parameter.device, torch.float32)

    @torch.no_grad()
    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if trainer.global_step == self._step:
            return
        self._step = trainer.global_step
        share = 1 - self.decay if self._step > self.start else 1.0
        for average, weight in self._pairs():
            average.lerp_(weight.float(), share)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._swap(pl_module, True)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._swap(pl_module, False)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self._swap(pl_module, False)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._restored:  # a training that had ended is continued: no step is left
            self.on_train_start(trainer, pl_module)
        self._swap(pl_module, True)
        self._averages, self._layout, self._swapped = {}, {}, False

    def state_dict(self) -> dict[str, Any]:
        """The whole averages, on the CPU of the first process; all processes call it."""
        first = not dist.is_initialized() or dist.get_rank() == 0
        kept: dict[str, Tensor] = {}
        for name, average in self._averages.items():
            layout = self._layout[name]
            if isinstance(layout, DTensor):
                average = DTensor.from_local(
                    average, layout.device_mesh, layout.placements, shape=layout.shape, stride=layout.stride()
                ).full_tensor()
            if first:
                kept[name] = average.cpu().clone()
        return {"averages": kept}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._restored = dict(state_dict["averages"])

    def _with_weights(self, save: Callable[..., None], module: nn.Module) -> Callable[..., None]:
        """Saving as the trainer does, but also inside a validation with the weights in their place, whoever saves."""

        def saved(*args: Any, **kwargs: Any) -> None:
            swapped = self._swapped
            self._swap(module, False)
            save(*args, **kwargs)
            self._swap(module, swapped)

        return saved

    def _pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        for name, average in self._averages.items():
            yield average, _local(self._layout[name])

    @torch.no_grad()
    def _swap(self, module: nn.Module, averaged: bool) -> None:
        """Let averages and weights change places, if they are not where they are wanted."""
        if not self._averages or averaged == self._swapped:
            return
        for part in module.modules():
            if isinstance(part, FSDPModule):
                part.reshard()  # or it would go on with the weights that it has gathered before
        for average, weight in self._pairs():
            kept = weight.clone()
            weight.copy_(average)
            average.copy_(kept)
        self._swapped = averaged


def _local(weight: Tensor) -> Tensor:
    local: Tensor = weight.to_local() if isinstance(weight, DTensor) else weight
    return local.detach()
