"""`cropl quickstart`: study, table and a photograph, with untrained models in place of the shipped ones."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cropl import recipe
from cropl.cli import main
from cropl.commands import quickstart
from cropl.testbed import weights


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


def test_training_is_shown_before_and_after(monkeypatch, capsys):
    class Trainer:
        interrupted, fitted = False, False

        def validate(self, model, datamodule, verbose):
            return [{"val/mean_recall": 0.9 if self.fitted else 0.3, "val/loss": 1.0}]

        def fit(self, model, datamodule):
            self.fitted = True

    class Cli:
        trainer, model, datamodule = Trainer(), None, None

    monkeypatch.setattr(recipe, "find", lambda name: name)
    quickstart._train(lambda args, run: Cli)
    assert "mean recall" in (told := capsys.readouterr().out) and "before 0.300   after 0.900" in told
