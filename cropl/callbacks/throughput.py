"""How fast a training is: tokens and samples a second, and the share of the machine's arithmetic that it uses (MFU)."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.throughput import get_available_flops
from torch import nn

from cropl.metrics.cost import attention_flops, linear_flops, vision_flops

_DTYPES = {"bf16-mixed": torch.bfloat16, "bf16-true": torch.bfloat16, "16-mixed": torch.half, "16-true": torch.half}


class Throughput(L.Callback):
    """Logs ``train/tokens_per_second``, ``train/samples_per_second``, ``train/tflops_per_second`` and ``train/mfu``.

    They are over all processes, and over the steps since they were last logged, every ``log_every_n_steps``; the time
    of validation and of saving does not count. Lightning's ``ThroughputMonitor`` waits for the device at every batch,
    and takes the first process's batches for those of all.

    FLOPs are those that the model needs: of text and visual tokens without padding, forward, backward to what trains,
    and weight gradients of what trains; nothing for what is computed twice to save memory. Questions that share a
    picture count as if each also saw those before it. Adapters and what compresses visual tokens are left out.

    Args:
        peak_flops: dense FLOPs a second of one device at the training's precision; None asks Lightning's table, and
            where the device is not in it (a CPU, for example) there is no ``train/mfu``.

    The module has ``vlm`` and, of its last batch, ``computed``: the number of tokens of each document, and of those
    that its head was applied to.
    """

    def __init__(self, peak_flops: float | None = None) -> None:
        if peak_flops is not None and peak_flops <= 0:
            raise ValueError(f"Throughput peak_flops {peak_flops}: must be positive")
        self.peak_flops = peak_flops
        self._peak: float | None = None
        self._begun: float | None = None  # None until a batch begins the next interval
        self._paused = 0.0
        self._step = 0
        self._counts = [0.0, 0.0, 0.0]  # samples, tokens, FLOPs

    def on_train_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        device = trainer.strategy.root_device
        dtype = getattr(trainer.strategy, "compute_dtype", _DTYPES.get(str(trainer.precision), torch.float32))
        found = self.peak_flops if self.peak_flops is not None else get_available_flops(device, dtype)
        self._peak = float(found) if found else None
        self._restart(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        _wait(trainer)
        self._paused = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        _wait(trainer)
        if self._begun is not None:
            self._begun += time.perf_counter() - self._paused

    def on_save_checkpoint(self, trainer: L.Trainer, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """Begin anew at the next batch: nobody says when the saving is over."""
        self._begun = None

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if self._begun is None:
            self._restart(trainer)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if getattr(pl_module, "computed", None) is None:
            raise ValueError(f"{type(pl_module).__name__} does not say what a step computes: leave Throughput out")
        lengths, supervised = pl_module.computed
        flops = step_flops(pl_module.vlm, lengths, supervised, batch["grids"])
        for i, count in enumerate((sum(map(len, batch["questions"])), sum(lengths), flops)):
            self._counts[i] += count
        stepped, every = trainer.global_step > self._step, int(getattr(trainer, "log_every_n_steps", 0))
        self._step = trainer.global_step
        if self._begun is None or not stepped or not every or self._step % every:
            return
        _wait(trainer)
        elapsed = time.perf_counter() - self._begun
        counts = torch.tensor(self._counts, device=trainer.strategy.root_device)
        summed: Any = trainer.strategy.reduce(counts, reduce_op="sum")
        samples, tokens, flops = (count / elapsed for count in summed.tolist())
        rates = {"samples_per_second": samples, "tokens_per_second": tokens, "tflops_per_second": flops / 1e12}
        if self._peak is not None:
            rates["mfu"] = flops / (trainer.world_size * self._peak)
        pl_module.log_dict({f"train/{name}": value for name, value in rates.items()})
        self._restart(trainer)

    def _restart(self, trainer: L.Trainer) -> None:
        _wait(trainer)
        self._begun, self._counts, self._step = time.perf_counter(), [0.0, 0.0, 0.0], trainer.global_step


def step_flops(vlm: Any, lengths: list[int], supervised: int, patches: Sequence[tuple[int, int]]) -> int:
    """FLOPs of forward and backward of one batch.

    Args:
        vlm: the model; which of its weights train decides what backward computes.
        lengths: tokens of each document.
        supervised: positions that the head is applied to.
        patches: rows and columns of each picture's patches, before merging.
    """
    config, layers = vlm.decoder.config, vlm.num_layers
    linears = linear_flops(config, [1] * layers, logits=0) * sum(lengths)
    products = sum(attention_flops(config, [length] * layers) for length in lengths)
    head = linear_flops(config, [0] * layers, logits=supervised)
    # What trains first of all (projector, adapters) lies below the decoder or in it: gradients go back all the way.
    language = (3 if _trains(vlm.decoder.layers) else 2) * linears + 3 * products
    language += (3 if _trains(vlm.model.get_output_embeddings()) else 2) * head
    tower = getattr(vlm.tower, "blocks", vlm.tower)  # Qwen2-VL's holds the merger as well
    seen = sum(vision_flops(vlm.model.config, (rows, columns)) for rows, columns in patches)
    return language + (3 if _trains(tower) else 1) * seen


def _trains(module: nn.Module) -> bool:
    """Whether weights of its own train; adapters beside them do not count."""
    return any(p.requires_grad and ".lora_" not in name for name, p in module.named_parameters())


def _wait(trainer: L.Trainer) -> None:
    """Until the device has done what it was told: kernels run on after Python has gone on."""
    if trainer.strategy.root_device.type == "cuda":
        torch.cuda.synchronize()
