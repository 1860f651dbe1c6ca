"""What every training module here shares: optimizer, precision, sharding, and checkpoints without frozen weights."""

from __future__ import annotations

import math
from collections.abc import Collection
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch import nn

from cropl.modules.muon import MuonAdamW
from cropl.parallel import FSDP2, load_optimizers, shard, stored_weights

STEPS = ("training_step", "validation_step", "test_step", "predict_step")


class TrainingModule(L.LightningModule):
    """Base of the training modules.

    Args:
        lr: peak learning rate of AdamW.
        weight_decay: on matrices; vectors, embeddings and heads are not decayed.
        warmup: share of the steps in which the rate rises to ``lr``; a cosine then takes it to ``final_lr_share``.
        betas: AdamW's moment decays.
        final_lr_share: the rate at the last step, as a share of ``lr``.
        muon: Muon for the matrices (from scratch), AdamW for the rest; the paper fine-tunes with AdamW alone.
        activation_checkpointing: keep only the inputs of decoder layers for backward and compute the rest again: a
            third more time for a fraction of the memory.

    Its model is ``self.vlm``, whose weights may have been loaded in any precision: those that train become float32.
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
        activation_checkpointing: bool = False,
    ):
        super().__init__()
        if lr <= 0:
            raise ValueError(f"lr must be positive, got {lr}")
        self.lr, self.weight_decay, self.warmup = lr, weight_decay, warmup
        self.betas, self.final_lr_share = (float(betas[0]), float(betas[1])), final_lr_share
        self.muon, self.activation_checkpointing = muon, activation_checkpointing
        self._sharded = self._checkpointed = False
        self.facts: dict[str, Any] = {}  # of the training, for the model card of an export

    @property
    def shard_units(self) -> list[nn.Module]:
        """What FSDP2 gathers one after the other."""
        vlm: Any = self.vlm
        units: list[nn.Module] = vlm.shard_units
        return units

    @property
    def lasting_units(self) -> Collection[int]:
        """Numbers of the shard units whose weights a step also uses when their forward is over."""
        return ()

    def configure_model(self) -> None:
        """Make float32 masters of what trains, for training; under FSDP2 shard them, once.

        The base model is loaded by ``__init__``, on every process, in its own memory.

        Raises:
            ValueError: the precision would round the updates away, or the strategy is parallel in another way.
        """
        trainer = self._trainer
        if trainer is None or self._sharded:
            return
        strategy: Any = trainer.strategy
        if isinstance(strategy, FSDP2):
            steps = [name for name in STEPS if is_overridden(name, self)]
            units, mesh = self.shard_units, strategy.device_mesh["data_parallel"]
            shard(self, units, mesh, strategy.root_device, strategy.compute_dtype, steps)
            for number in self.lasting_units:
                units[number].set_reshard_after_forward(False)  # type: ignore[operator]
            self._sharded = True
        elif self.device_mesh is not None:
            raise ValueError(f"trainer.strategy {type(strategy).__name__}: use fsdp2, which shards this module")
        elif trainer.state.fn == TrainerFn.FITTING:
            self._keep_masters(str(trainer.precision))
        if self.activation_checkpointing:
            vlm: Any = self.vlm
            vlm.decoder.activation_checkpointing_enable({"use_reentrant": False})
            self._checkpointed = True

    def _keep_masters(self, precision: str) -> None:
        if precision in ("bf16-true", "16-true"):
            raise ValueError(
                f"trainer.precision {precision} would round small updates away: train with bf16-mixed, or with "
                "trainer.strategy fsdp2 and its compute_dtype bfloat16"
            )
        if precision == "16-mixed":
            raise ValueError(
                "trainer.precision 16-mixed: models whose activations were trained in bfloat16, Qwen2-VL's among them, "
                "overflow in float16: train with bf16-mixed, or with 32-true where there is no bfloat16"
            )
        frozen = {p.dtype for p in self.parameters() if not p.requires_grad and p.is_floating_point()}
        if precision == "32-true" and frozen - {torch.float32}:
            names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in frozen))
            raise ValueError(
                f"frozen weights are {names}, and trainer.precision is {precision}: set it to bf16-mixed, or load the "
                "model in float32"
            )
        self.float32_masters()

    def float32_masters(self) -> None:
        """Make what trains float32, in which checkpoints have it; what is frozen stays as it was loaded."""
        for parameter in self.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.float()

    def on_fit_start(self) -> None:
        """Models are loaded in eval mode, and Lightning leaves it so."""
        self.train()

    def train(self, mode: bool = True) -> TrainingModule:
        """As in torch; but what is frozen as a whole stays in eval mode."""
        super().train(mode)
        _keep_frozen(self)
        if mode and self._checkpointed:
            for unit in self.shard_units:  # a frozen one, too, is computed again only if it is said to train
                unit.training = True
        return self

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
        frozen = {name for name, p in self.named_parameters(remove_duplicate=False) if not p.requires_grad}
        return {name: value for name, value in full.items() if name not in frozen}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Check a checkpoint against :meth:`state_dict`: loading itself is not strict, as frozen weights are left out.

        Under FSDP2 the strategy has loaded it before; states of optimizers that come from one file are loaded again.

        Raises:
            ValueError: weights are missing, are not this module's, or have another shape.
        """
        if "state_dict" in checkpoint:
            given = _shapes(checkpoint["state_dict"])
        else:  # sharded weights are loaded by the strategy
            given = stored_weights(self.trainer.ckpt_path)  # type: ignore[arg-type]
        own = _shapes(self.state_dict())
        wrong = [f"{name} is missing" for name in own if name not in given]
        wrong += [f"{name} is not a trained weight of this module" for name in given if name not in own]
        wrong += [
            f"{name} has the shape {given[name]} instead of {shape}"
            for name, shape in own.items()
            if name in given and given[name] != shape
        ]
        if wrong:
            more = f" (and {len(wrong) - 3} more)" if len(wrong) > 3 else ""
            raise ValueError(
                f"the checkpoint does not fit this {type(self).__name__}: {'; '.join(wrong[:3])}{more}; "
                f"give the recipe and the base model that it was trained with"
            )
        if self._sharded and "optimizer_states" in checkpoint:
            load_optimizers(self, self.trainer.optimizers, checkpoint["optimizer_states"])


def _keep_frozen(module: nn.Module) -> None:
    parameters = list(module.parameters())
    if parameters and not any(p.requires_grad for p in parameters):
        module.eval()
    else:
        for child in module.children():
            _keep_frozen(child)


def _shapes(state: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    return {name: tuple(getattr(value, "shape", ())) for name, value in state.items()}
