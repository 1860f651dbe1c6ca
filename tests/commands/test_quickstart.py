"""`cropl quickstart`: study, table and a photograph, with untrained models in place of the shipped ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cropl import recipe
from cropl.cli import main, training_cli
from cropl.commands import quickstart
from cropl.testbed import weights
from cropl.testbed.build import build_qwen2_vl


@pytest.fixture
def shipped(tiny_llava, tiny_localizer, monkeypatch):
    folders = {"llava": Path(tiny_llava), "localizer": Path(tiny_localizer)}
    monkeypatch.setattr(weights, "path", folders.__getitem__)


def test_study_and_photograph(shipped, tmp_path, monkeypatch, capsys):
    small = tmp_path / "small.yaml"
    small.write_text("data: {init_args: {count: 2}}\nvars: {budgets: [64]}\nbootstrap: 20\nseeds: 0\n")
    load = recipe.load
    monkeypatch.setattr(recipe, "load", lambda recipes, overrides=None: load([*recipes, small], overrides))
    assert main(["quickstart", "--skip-training", "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr().out
    assert "region    " in told and "answer    " in told and f"open {tmp_path / 'out' / 'report.html'}" in told
    assert {path.name for path in (tmp_path / "out").iterdir()} == {
        "results.json", "predictions.jsonl", "report.html", "overlay.png",
    }  # fmt: skip
    results = json.loads((tmp_path / "out/results.json").read_text())
    assert set(results["localizer"]) == {"mean_recall", "recall_gt_0.5", "recall_gt_0.7", "recall_gt_0.9", "n"}
    assert {row["model"] for row in results["rows"]} == {"testbed:llava"}


def test_training_writes_below_out_and_nowhere_else(tmp_path, monkeypatch, capsys):
    base = build_qwen2_vl(tmp_path / "base", layers=5, width=64)  # the recipe guides layers 1 to 4
    changes = {"scenes: 400": "scenes: 4", "val_scenes: 48": "val_scenes: 2", "batch_size: 8": "batch_size: 4",
               "max_steps: 120": "max_steps: 1", "interval: 120": "interval: 1", "train_steps: 40": "train_steps: 1",
               "testbed:qwen2_vl": str(base)}  # fmt: skip
    text = recipe.find(quickstart.TRAINING).read_text()
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (tmp_path / "small.yaml").write_text(text)
    monkeypatch.setattr(quickstart, "TRAINING", str(tmp_path / "small.yaml"))
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    quickstart._train(training_cli, tmp_path / "out")
    assert "mean recall" in capsys.readouterr().out
    assert list((tmp_path / "here").iterdir()) == []
    assert {path.name for path in tmp_path.iterdir()} == {"base", "here", "out", "small.yaml"}
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"cache", "localizer", "quickstart_localizer"}
    written = {path.name for path in (tmp_path / "out/quickstart_localizer").iterdir()}
    assert {"checkpoints", "metrics.csv", "config.yaml", "regions"} <= written


def test_an_out_that_cannot_be_is_told_before_the_training(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert main(["quickstart", "--out", str(tmp_path / "file")]) == 2
    told = capsys.readouterr()
    assert "is a file; give a folder" in told.err and told.out == ""


def test_training_is_shown_before_and_after(tmp_path, monkeypatch, capsys):
    class Trainer:
        interrupted, fitted = False, False

        def validate(self, model, datamodule, verbose):
            return [{"val/mean_recall": 0.9 if self.fitted else 0.3, "val/loss": 1.0}]

        def fit(self, model, datamodule):
            self.fitted = True

    class Cli:
        trainer, model, datamodule = Trainer(), None, None

    monkeypatch.setattr(recipe, "find", lambda name: name)
    quickstart._train(lambda args, run: Cli, tmp_path)
    assert "mean recall" in (told := capsys.readouterr().out) and "before 0.300   after 0.900" in told
