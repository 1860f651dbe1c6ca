"""Callbacks of which one process does more than the others: none waits for another, and all end together."""

from __future__ import annotations

from datetime import timedelta

import lightning as L
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import DDPStrategy
from PIL import Image
from torch.utils.data import DataLoader

from cropl.callbacks.answers import SampleAnswers
from cropl.callbacks.overlays import RegionOverlays
from cropl.callbacks.predictions import Predictions
from cropl.grid import Region
from tests.attacks import faults
from tests.callbacks.runs import fit

pytestmark = pytest.mark.slow


class Locating(L.LightningModule):
    """Answers with a region and a text; in predictions each process differs from the other."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, index):
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch, index):
        return {"regions": [Region(0, 0, 2, 2)], "answers": ["red"]}

    def predict_step(self, batch, index):
        return [{"key": "same", "by": self.global_rank}]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


class Pictures(L.LightningDataModule):
    def train_dataloader(self):
        row = {"question": "q", "answer": "red", "region": (0, 0, 1, 1)}
        batch = {"questions": [[row]], "pictures": [lambda: Image.new("RGB", (64, 64))]}
        return DataLoader([batch] * 8, batch_size=None)

    val_dataloader = predict_dataloader = train_dataloader


def strategy():
    return DDPStrategy(timeout=timedelta(seconds=60))


def showing(out, world):
    """Validates twice, ahead of a checkpoint each time."""
    logger = CSVLogger(out, name="", version="")
    fit(
        out / "saved", module=Locating(), data=Pictures(), world=world, strategy=strategy(), max_steps=4,
        accumulate_grad_batches=1, val_check_interval=2, logger=logger, ckpt_every_n_train_steps=2,
        callbacks=[RegionOverlays(2), SampleAnswers(2)],
    )  # fmt: skip


def predicting(out, world):
    trainer = L.Trainer(
        accelerator="cpu", devices=world, strategy=strategy(), logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[Predictions(str(out / "predicted"))],
    )  # fmt: skip
    trainer.predict(Locating(), Pictures())


def test_sheets_and_tables_of_two_processes(tmp_path):
    assert faults.run(showing, tmp_path / "run", 2) == [0, 0]
    for folder, end in (("regions", "png"), ("answers", "md")):
        found = sorted(path.name for path in (tmp_path / "run" / folder).iterdir())
        assert found == [f"step-000002.{end}", f"step-000004.{end}"]


def test_predictions_that_differ_end_both(tmp_path):
    assert faults.run(predicting, tmp_path / "run", 2, seconds=45) == [1, 1]
    told = [(tmp_path / "run" / f"error-{rank}.txt").read_text() for rank in range(2)]
    assert told[0] == told[1] and told[0].startswith("RunError: no predictions written: process 0: sample 'same'")
    assert not (tmp_path / "run" / "predicted" / "predictions.jsonl").exists()
