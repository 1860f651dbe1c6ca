"""Validation under Lightning, on one process or, as a script, on two with gloo.

``python -m tests.modules.validation CHECKPOINT OUT`` validates on the same eight samples on two ranks; then again,
where none of rank 1's count.
"""

from __future__ import annotations

import json
import os
import sys
from dataclasses import replace
from pathlib import Path

import lightning as L
from torch.utils.data import DataLoader

from cropl.data.sample import Sample
from cropl.modules.instruction import InstructionModule
from tests.modules.gradients import mixed


def sets() -> list[list[Sample]]:
    """All samples, and with all but the first four not counting."""
    return [mixed(), [replace(sample, valid=sample.valid and number < 4) for number, sample in enumerate(mixed())]]


def losses(checkpoint: str, devices: int = 1, rank: int = 0) -> list[float | None]:
    """What each validation logs as its loss on this rank."""
    module = InstructionModule(checkpoint)
    share = 8 // devices
    found = []
    for samples in sets():
        trainer = L.Trainer(
            accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", logger=False,
            enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
            use_distributed_sampler=False,
        )  # fmt: skip
        mine = samples[rank * share : (rank + 1) * share]
        trainer.validate(module, DataLoader(mine, 1, collate_fn=module.collate), verbose=False)
        loss = trainer.callback_metrics.get("val/loss")
        found.append(None if loss is None else float(loss))
    return found


if __name__ == "__main__":
    rank = int(os.environ.get("LOCAL_RANK", "0"))  # Lightning starts this script again for rank 1
    Path(sys.argv[2], f"{rank}.json").write_text(json.dumps(losses(sys.argv[1], 2, rank)))
