"""Optimizer settings of this run where a checkpoint brings its own, for a change that was asked for."""

from __future__ import annotations

from typing import Any

import lightning as L
from torch.optim.lr_scheduler import LambdaLR

Hyperparameters = list[list[dict[str, Any]]]


def capture(trainer: L.Trainer) -> Hyperparameters:
    """Of each optimizer's groups, before a checkpoint is loaded."""
    return [
        [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
        for optimizer in trainer.optimizers
    ]


def put_back(trainer: L.Trainer, settings: Hyperparameters) -> None:
    """Set what :func:`capture` gave, after a checkpoint was loaded.

    The learning rate goes on at the schedule's place, from the new peak.
    """
    for optimizer, groups in zip(trainer.optimizers, settings):
        for group, wanted in zip(optimizer.param_groups, groups):
            group.update(wanted)
    for config in trainer.lr_scheduler_configs:
        scheduler = config.scheduler
        if isinstance(scheduler, LambdaLR):
            groups = scheduler.optimizer.param_groups
            scheduler.base_lrs = [group["initial_lr"] for group in groups]
            for group, factor in zip(groups, scheduler.lr_lambdas):
                group["lr"] = group["initial_lr"] * factor(scheduler.last_epoch)
