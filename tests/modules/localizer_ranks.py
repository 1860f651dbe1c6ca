"""Validation of a localizer under Lightning in bf16-true, on one process or, as a script, on two with gloo.

``python -m tests.modules.localizer_ranks CHECKPOINT OUT`` validates on the same eight samples on two ranks; then again,
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
from cropl.grid import Region
from cropl.modules.localizer import LocalizerModule
from cropl.testbed.samples import samples

SOURCES = ("boxed", "rare")


def text(key: str = "text") -> Sample:
    """A conversation without a picture."""
    empty = {"boxes": [], "width": 0, "height": 0, "image": None, "source": "texts"}
    return replace(
        samples("train", 1)[0], key=key, region=Region.full(), question="How many?", answers=["yes"], **empty
    )


def asked(first_only: bool = False) -> list[Sample]:
    """Eight samples, four a rank: one source is on rank 0 alone, a text and a repetition on rank 1."""
    made = [replace(sample, source="boxed") for sample in samples("val", 8)]
    made[1] = replace(made[1], source="rare")
    made[5], made[7] = text(), replace(made[7], valid=False)
    return [replace(sample, valid=sample.valid and number < 4) if first_only else sample
            for number, sample in enumerate(made)]  # fmt: skip


def scores(checkpoint: str, devices: int = 1, rank: int = 0, first_only: bool = False) -> dict[str, float]:
    """What a validation logs on this rank."""
    module = LocalizerModule(checkpoint)
    share = 8 // devices
    trainer = L.Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", precision="bf16-true",
        logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False,
        use_distributed_sampler=False,
    )  # fmt: skip
    mine = asked(first_only)[rank * share : (rank + 1) * share]
    trainer.validate(module, DataLoader(mine, 1, collate_fn=module.collate), verbose=False)
    return {name: float(value) for name, value in trainer.callback_metrics.items()}


if __name__ == "__main__":
    rank = int(os.environ.get("LOCAL_RANK", "0"))  # Lightning starts this script again for rank 1
    found = [scores(sys.argv[1], 2, rank, first_only) for first_only in (False, True)]
    Path(sys.argv[2], f"{rank}.json").write_text(json.dumps(found))
