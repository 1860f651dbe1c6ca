"""A tower's pre-training stops on all processes where the loss or the gradient of one is no number."""

from __future__ import annotations

import json
import math
import os

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch.utils.data import DataLoader, Dataset

from cropl.errors import RunError
from cropl.modules.dense_labels import DenseLabelModule
from cropl.testbed.build import build_llava
from tests.attacks import faults

PATCHES = 576


class Pictures(Dataset):
    """Batches of one picture without anything on it; the box labels of one are no numbers."""

    def __init__(self, bad: int):
        self.bad = bad

    def __len__(self) -> int:
        return 4

    def __getitem__(self, number: int) -> dict:
        labels = torch.zeros(PATCHES, 8)
        labels[:4, 0] = 1
        if number == self.bad:
            labels[0, 4] = math.nan
        pixels = torch.rand(3, 192, 192, generator=torch.Generator().manual_seed(number))
        asked = [[{"question": f"picture {number}?"}]]
        return {"pixels": [pixels], "grids": [(24, 24)], "labels": labels, "questions": asked}


def train(checkpoint, out, bad, world=1, strategy="auto", accumulate=1):
    module = DenseLabelModule(str(checkpoint), lr=0.01)
    before = {name: p.clone() for name, p in module.named_parameters()}
    trainer = L.Trainer(
        accelerator="cpu", devices=world, strategy=strategy, max_epochs=1, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, default_root_dir=out, accumulate_grad_batches=accumulate,
        plugins=[LightningEnvironment()] if world > 1 else None, use_distributed_sampler=False,
    )  # fmt: skip
    try:
        trainer.fit(module, DataLoader(Pictures(bad), batch_size=None))
    finally:
        moved = any(not torch.equal(p, before[name]) for name, p in module.named_parameters())
        (out / f"end-{trainer.global_rank}.json").write_text(json.dumps([trainer.global_step, moved]))
    return module, trainer


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return build_llava(tmp_path_factory.mktemp("llava"), layers=1, width=64)


def test_nothing_is_updated(checkpoint, tmp_path):
    """The second batch of an accumulated step."""
    with pytest.raises(RunError, match=r"step 0: the loss is nan.*with the samples picture 1\?; all are in .*000000"):
        train(checkpoint, tmp_path, bad=1, accumulate=2)
    assert json.loads((tmp_path / "end-0.json").read_text()) == [0, False]
    said = json.loads((tmp_path / "nonfinite-step-000000.json").read_text())
    assert [batch["samples"] for batch in said["processes"][0]] == [["picture 0?"], ["picture 1?"]]


def test_what_another_process_has_lost_stops_this_one(checkpoint, tmp_path, monkeypatch):
    """Its own loss is a number; reduced over all processes it is none."""
    monkeypatch.setattr(
        "lightning.pytorch.strategies.SingleDeviceStrategy.reduce", lambda self, loss, **options: loss * math.nan
    )
    with pytest.raises(RunError, match="step 0: the loss is nan"):
        train(checkpoint, tmp_path, bad=-1)
    assert json.loads((tmp_path / "end-0.json").read_text()) == [0, False]


def test_a_gradient_that_is_no_number(checkpoint, tmp_path, monkeypatch):
    real = DenseLabelModule.backward

    def backward(self, loss, *args, **kwargs):
        real(self, loss, *args, **kwargs)
        if self.global_step == 1:
            self.head.weight.grad[0, 0] = math.inf

    monkeypatch.setattr(DenseLabelModule, "backward", backward)
    with pytest.raises(RunError, match="step 1: the gradient's norm is inf, with the samples picture 1"):
        train(checkpoint, tmp_path, bad=-1)
    assert json.loads((tmp_path / "end-0.json").read_text()) == [1, True]


def two(out, world, checkpoint):
    bad = 1 if os.environ["LOCAL_RANK"] == "1" else -1
    train(checkpoint, out, bad, world, strategy="ddp_find_unused_parameters_true")


@pytest.mark.slow
def test_both_of_two_processes_stop(checkpoint, tmp_path):
    """At the same step, though one of them has a loss."""
    out = tmp_path / "run"
    assert faults.run(two, out, 2, str(checkpoint)) == [1, 1]
    errors = [(out / f"error-{rank}.txt").read_text() for rank in range(2)]
    assert errors[0] == errors[1] and "step 1: the loss is nan in process 1, with the samples picture 1?;" in errors[0]
    assert [json.loads((out / f"end-{rank}.json").read_text()) for rank in range(2)] == [[1, True]] * 2
