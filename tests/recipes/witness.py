"""A callback that a recipe's test adds: what a training really allocates, and how far it came."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import lightning as L
import torch


@dataclass
class Seen:
    """Of the last training: bytes of weights, of gradients and of AdamW's moments, and the loss of each step."""

    weights: int = 0
    gradients: int = 0
    optimizer: int = 0
    trained: int = 0
    losses: list[float] = field(default_factory=list)


seen = Seen()


class Witness(L.Callback):
    """Fills :data:`seen`, anew with each training."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        global seen
        seen = Seen()

    def on_before_optimizer_step(self, trainer: Any, pl_module: Any, optimizer: Any) -> None:
        parameters = list(pl_module.parameters())
        seen.trained = sum(one.numel() for one in parameters if one.requires_grad)
        seen.weights = sum(one.numel() * one.element_size() for one in parameters)
        gradients = [one.grad for one in parameters if one.grad is not None]
        assert all(torch.isfinite(one).all() for one in gradients)
        seen.gradients = sum(one.numel() * one.element_size() for one in gradients)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, index: int) -> None:
        if trainer.global_step > len(seen.losses):
            seen.losses.append(float(trainer.callback_metrics["train/loss"]))
            moments = [
                moment
                for state in trainer.optimizers[0].state.values()
                for name, moment in state.items()
                if name.startswith("exp_avg")
            ]
            seen.optimizer = sum(one.numel() * one.element_size() for one in moments)
