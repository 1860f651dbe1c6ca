"""The export at the end of a training: by all processes, with what the card is to say, and not over other things."""

from __future__ import annotations

import lightning as L
import pytest
import torch
import yaml

from cropl.callbacks.export import Export
from cropl.cli import training_cli


class Exported(L.LightningModule):
    """Remembers what it was asked to export."""

    def __init__(self, lr: float = 0.1):
        super().__init__()
        self.layer, self.lr = torch.nn.Linear(1, 1), lr
        self.calls: list = []

    def training_step(self, batch, index):
        return self.layer(torch.ones(1, 1)).sum()

    def validation_step(self, batch, index):
        self.log("val/loss", 0.5, batch_size=1)
        self.log("other", 1.0, batch_size=1)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=self.lr)

    def export(self, folder, dtype):
        self.calls.append((str(folder), dtype, self.facts))


class Numbers(L.LightningDataModule):
    folders = {"train": ["a", "b"]}

    def train_dataloader(self):
        return [0, 1, 2]

    val_dataloader = train_dataloader


def _recipe(folder, **options):
    return {
        "model": {"class_path": f"{__name__}.Exported", "init_args": {"lr": 0.25}},
        "data": {"class_path": f"{__name__}.Numbers"},
        "trainer": {
            "accelerator": "cpu", "max_steps": 2, "logger": False, "enable_checkpointing": False,
            "enable_progress_bar": False, "enable_model_summary": False, "default_root_dir": str(folder),
            "callbacks": [
                {"class_path": "cropl.callbacks.export.Export",
                 "init_args": {"folder": str(folder / "out"), "dtype": "float16"}},
            ],
            **options,
        },
    }  # fmt: skip


def test_a_recipe_exports_with_its_facts(tmp_path):
    (tmp_path / "recipe.yaml").write_text(yaml.safe_dump(_recipe(tmp_path, val_check_interval=2)))
    cli = training_cli(["fit", "--config", str(tmp_path / "recipe.yaml")])
    ((folder, dtype, facts),) = cli.model.calls
    assert (folder, dtype) == (str(tmp_path / "out"), "float16")
    assert facts["steps"] == 2 and facts["metrics"] == {"val/loss": 0.5}
    assert facts["data"] == "Numbers of `a`, `b`"
    recipe = yaml.safe_load(facts["recipe"])
    assert recipe["model"]["init_args"] == {"lr": 0.25} and recipe["trainer"]["max_steps"] == 2
    assert "gradient_clip_val" not in recipe["trainer"]  # defaults are left out


def test_every_process_takes_part(tmp_path, monkeypatch):
    """Sharded weights are gathered by all of them: also where this is not the first."""
    module = Exported()
    trainer = L.Trainer(accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False)
    monkeypatch.setattr(type(trainer.strategy), "is_global_zero", False)
    assert not trainer.is_global_zero
    Export(str(tmp_path / "out")).on_fit_end(trainer, module)
    assert len(module.calls) == 1
    quick = L.Trainer(accelerator="cpu", fast_dev_run=True, logger=False)
    Export(str(tmp_path / "out")).on_fit_end(quick, module)
    assert len(module.calls) == 1


def test_a_folder_of_other_things_is_refused_before_the_training(tmp_path):
    (tmp_path / "notes.txt").touch()
    with pytest.raises(ValueError, match="is no checkpoint: give Export a new folder"):
        Export(str(tmp_path)).setup(L.Trainer(accelerator="cpu", logger=False), Exported(), "fit")
    Export(str(tmp_path)).setup(L.Trainer(accelerator="cpu", logger=False), Exported(), "validate")
