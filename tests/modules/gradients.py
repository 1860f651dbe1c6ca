"""Gradients of one optimizer step under Lightning, on one process or, as a script, on two with gloo.

``python -m tests.modules.gradients CHECKPOINT OUT`` trains on the same eight samples on two ranks, four batches of one
sample each: rank 0 has all the pictures, rank 1 has texts alone.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader

from cropl.data.sample import Sample
from cropl.grid import Region
from cropl.modules.instruction import InstructionModule
from cropl.testbed.samples import samples


class Probe(InstructionModule):
    """Keeps the gradients that an optimizer gets, and trains nothing with them."""

    def configure_optimizers(self) -> Any:
        self.gradients: list[dict[str, torch.Tensor]] = []
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.0)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        super().on_before_optimizer_step(optimizer)
        given = {name: p.grad.clone() for name, p in self.named_parameters() if p.grad is not None}
        self.gradients.append(given)


def mixed() -> list[Sample]:
    """Four questions about pictures, then four texts; answers of one to twelve tokens, one of which does not count."""
    pictures = samples("train", 4)
    pictures[0] = replace(pictures[0], followups=[("What is there ?", "red star one two three four five six")])
    texts = [
        Sample(
            key=f"text-{i}", question="What word is on the sign?", answers=[" ".join(["stop", "one", "red"][: i + 1])],
            boxes=[], width=0, height=0, region=Region.full(), kind="", source="texts", split="train", image=None,
            followups=[("And how many ?", "two")] * i, valid=i != 2,
        )
        for i in range(4)
    ]  # fmt: skip
    return [*pictures, *texts]


def gradients(
    checkpoint: str, batch_size: int, devices: int = 1, rank: int = 0, **options: Any
) -> tuple[dict[str, torch.Tensor], dict[str, float]]:
    """Gradients of the step over all samples, and what it logs."""
    module = Probe(checkpoint, **options)
    share = 8 // devices
    data = mixed()[rank * share : (rank + 1) * share]
    trainer = L.Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", max_steps=1,
        accumulate_grad_batches=share // batch_size, log_every_n_steps=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, use_distributed_sampler=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(data, batch_size, collate_fn=module.collate))
    (given,) = module.gradients
    return given, {name: float(value) for name, value in trainer.callback_metrics.items()}


if __name__ == "__main__":
    import os

    rank = int(os.environ.get("LOCAL_RANK", "0"))  # Lightning starts this script again for rank 1
    made = gradients(sys.argv[1], 1, devices=2, rank=rank)
    torch.save(made, f"{sys.argv[2]}/{rank}.pt")
