"""What every training module here shares: optimizer, schedule, and checkpoints without frozen weights."""

from __future__ import annotations

import math
from typing import Any

import lightning as L
import torch
from torch import nn

from cropl.modules.muon import MuonAdamW


class TrainingModule(L.LightningModule):
    """Base of the training modules.

    Args:
        lr: peak learning rate of AdamW.
        weight_decay: on matrices; vectors, embeddings and heads are not decayed.
        warmup: share of the steps in which the rate rises to ``lr``; a cosine then takes it to ``final_lr_share``.
        betas: AdamW's moment decays.
        final_lr_share: the rate at the last step, as a share of ``lr``.
        muon: Muon for the matrices (from scratch), AdamW for the rest; the paper fine-tunes with AdamW alone.
    """

    strict_loading = False  # frozen weights are not in the checkpoint: they come from the base

    def __init__(
        self,
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        warmup: float = 0.03,
        betas: tuple[float, float] = (0.9, 0.98),
        final_lr_share: float = 0.02,
        muon: bool = False,
    ):
        super().__init__()
        if lr <= 0:
            raise ValueError(f"lr must be positive, got {lr}")
        self.lr, self.weight_decay, self.warmup = lr, weight_decay, warmup
        self.betas, self.final_lr_share = (float(betas[0]), float(betas[1])), final_lr_share
        self.muon = muon

    def configure_optimizers(self) -> Any:
        matrices: list[nn.Parameter] = []
        others: list[nn.Parameter] = []
        for name, parameter in self.named_parameters():
            if parameter.requires_grad:
                plain = parameter.ndim < 2 or "embed" in name or "head" in name
                (others if plain else matrices).append(parameter)
        groups = [
            {"params": matrices, "weight_decay": self.weight_decay, "muon": True},
            {"params": others, "weight_decay": 0.0, "muon": False},
        ]
        groups = [group for group in groups if group["params"]]
        optimizer: torch.optim.Optimizer
        if self.muon:
            optimizer = MuonAdamW(groups, lr=self.lr, betas=self.betas)
        else:
            plain_groups = [{k: v for k, v in group.items() if k != "muon"} for group in groups]
            optimizer = torch.optim.AdamW(plain_groups, lr=self.lr, betas=self.betas)
        total = int(self.trainer.estimated_stepping_batches)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: self._rate(step, total))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _rate(self, step: int, total: int) -> float:
        rise = max(1, round(self.warmup * total))
        if step < rise:
            return (step + 1) / rise
        progress = min(1.0, (step - rise) / max(1, total - rise))
        return self.final_lr_share + (1 - self.final_lr_share) * 0.5 * (1 + math.cos(math.pi * progress))

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:  # type: ignore[override]
        """Everything but the frozen weights."""
        full = super().state_dict(*args, **kwargs)
        frozen = {name for name, p in self.named_parameters() if not p.requires_grad}
        return {name: value for name, value in full.items() if name not in frozen}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check a checkpoint against :meth:`state_dict`: loading itself is not strict, as frozen weights are left out.

        Raises:
            ValueError: weights are missing, are not this module's, or have another shape.
        """
        own, given = self.state_dict(), checkpoint["state_dict"]
        wrong = [f"{name} is missing" for name in own if name not in given]
        wrong += [f"{name} is not a trained weight of this module" for name in given if name not in own]
        wrong += [
            f"{name} has the shape {tuple(given[name].shape)} instead of {tuple(value.shape)}"
            for name, value in own.items()
            if name in given and isinstance(value, torch.Tensor) and given[name].shape != value.shape
        ]
        if wrong:
            more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
            raise ValueError(
                f"the checkpoint does not fit this {type(self).__name__}: {'; '.join(wrong[:3])}{more}; "
                f"give the recipe and the base model that it was trained with"
            )
