"""Small trainings whose every step draws random numbers, for tests of how they are saved and continued."""

from __future__ import annotations

import json
import logging
import os
import random
import warnings
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch import nn
from torch.utils.data import DataLoader

from cropl.callbacks.checkpoint import Checkpoint
from cropl.datamodules.testbed import EpochOrder, ResumableLoader

SAMPLES, BATCH, ACCUMULATE, EPOCHS = 16, 2, 2, 3
STEPS = SAMPLES // BATCH // ACCUMULATE * EPOCHS


class Draws(L.LightningModule):
    """Each step depends on draws of all three generators, and is written down; so does validation draw."""

    def __init__(self, log: Path | None = None, lr: float = 0.05, scores: list[float] | None = None):
        super().__init__()
        self.layer, self.log_file, self.lr = nn.Linear(4, 1), log, lr
        self.steps: list[Any] = []
        self.scores = scores
        with torch.no_grad():
            self.layer.weight.fill_(0.5)
            self.layer.bias.zero_()

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        noise = random.random() + float(np.random.rand()) + torch.rand(len(batch), 4)
        loss = (self.layer(noise)[:, 0] - batch.float()).square().mean() / 100
        self.steps.append([self.global_step, batch.tolist(), loss.item()])
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        if self.log_file is not None:
            with open(self.log_file, "a") as file:
                file.write(json.dumps([self.global_step, self.trainer.global_rank, self.steps[-ACCUMULATE:]]) + "\n")

    def validation_step(self, batch: Any, index: int) -> None:
        torch.rand(3), random.random(), np.random.rand()
        if self.scores is not None:
            self.log("score", self.scores[self.global_step % len(self.scores)])

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(self.parameters(), lr=self.lr)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (2 * steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


class Numbers(L.LightningDataModule):
    """Some numbers in the loader of the testbed's scenes."""

    def train_dataloader(self) -> Any:
        place = self.trainer.distributed_sampler_kwargs or {"num_replicas": 1, "rank": 0}
        order = EpochOrder(range(SAMPLES), **place, seed=3, drop_last=True)
        return ResumableLoader(range(SAMPLES), BATCH // place["num_replicas"], sampler=order, drop_last=True)

    def val_dataloader(self) -> Any:
        return DataLoader(range(4), 2)


def fit(folder: Path, ckpt: Any = None, module: Any = None, data: Any = None, world: int = 1, **options: Any) -> Any:
    """Train; module and trainer. Options are the trainer's and, with a leading `ckpt_`, the checkpoint's."""
    saving = {"dirpath": str(folder), "every_n_train_steps": 1, "keep": 100}
    saving |= {key.removeprefix("ckpt_"): options.pop(key) for key in list(options) if key.startswith("ckpt_")}
    settings = {
        "accelerator": "cpu", "max_epochs": EPOCHS, "accumulate_grad_batches": ACCUMULATE, "val_check_interval": 4,
        "num_sanity_val_steps": 0, "logger": False, "enable_progress_bar": False, "enable_model_summary": False,
        "devices": world, "strategy": "ddp" if world > 1 else "auto", "default_root_dir": folder,
        "plugins": [LightningEnvironment()] if world > 1 else None,
    }  # fmt: skip
    module, callbacks = module or Draws(), [Checkpoint(**saving), *options.pop("callbacks", [])]
    L.seed_everything(0, verbose=False)
    trainer = L.Trainer(**(settings | options), callbacks=callbacks)
    trainer.fit(module, data or Numbers(), ckpt_path=None if ckpt is None else str(ckpt))
    return module, trainer


def quiet() -> None:
    """For processes of their own."""
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)


def as_rank(rank: int, world: int, port: int) -> None:
    """Be one of several processes that something else than Lightning has started."""
    quiet()
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(world)
    )
