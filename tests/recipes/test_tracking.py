"""Experiment tracking: overlays that add a tracker, and pictures and tables in whichever logger can show them."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cropl import recipe
from cropl.callbacks.tracking import log_image, log_table
from cropl.cli import main, training_cli
from cropl.extras import remedy

ROOT = Path(__file__).parents[2]
LOGGERS = {"wandb": "WandbLogger", "mlflow": "MLFlowLogger"}
PICTURE = Image.new("RGB", (4, 3), (1, 2, 3))
COLUMNS, ROWS = ("question", "true answer"), [("What?", "red"), ("Where?", "left")]


class Calls:
    """Has the named methods, and notes what they are called with."""

    def __init__(self, *names: str, **attributes: Any) -> None:
        self.made: list[tuple[Any, ...]] = []
        for name in names:
            setattr(self, name, lambda *given, _name=name, **named: self.made.append((_name, given, named)))
        vars(self).update(attributes)


def test_each_logger_is_called_by_its_own_names() -> None:
    writer, client = Calls("add_image", "add_text"), Calls("log_image", "log_text", "log_table")
    board, flow = Calls(experiment=writer), Calls(experiment=client, run_id="r1")
    weights, plain = Calls("log_image", "log_table", experiment=Calls()), Calls(experiment=Calls("log_metrics"))
    log_image([plain, board, weights, flow], "regions", PICTURE, 7)
    log_table([plain, board, weights, flow], "answers", COLUMNS, ROWS, "| table |", 7)

    (_, (key, pixels, step), named), text = writer.made
    assert (key, step, named) == ("regions", 7, {"dataformats": "HWC"}) and np.array_equal(pixels, np.asarray(PICTURE))
    assert text == ("add_text", ("answers", "| table |", 7), {})
    assert weights.made == [
        ("log_image", (), {"key": "regions", "images": [PICTURE], "step": 7}),
        ("log_table", (), {"key": "answers", "columns": list(COLUMNS), "data": [list(row) for row in ROWS], "step": 7}),
    ]
    assert client.made == [
        ("log_image", ("r1", PICTURE), {"key": "regions", "step": 7}),
        ("log_text", ("r1", "| table |", "answers/step-000007.md"), {}),
    ]
    assert not plain.made and not vars(plain)["experiment"].made


def test_what_is_always_installed(tmp_path: Path) -> None:
    board, csv = TensorBoardLogger(tmp_path, name="", version=""), CSVLogger(tmp_path / "csv")
    log_image([csv, board], "regions", PICTURE, 1)
    log_table([csv, board], "answers", COLUMNS, ROWS, "| table |", 1)
    board.finalize("success")
    tags = EventAccumulator(str(tmp_path)).Reload().Tags()
    assert tags["images"] == ["regions"] and tags["tensors"] == ["answers/text_summary"]


@pytest.mark.parametrize("name", LOGGERS)
def test_an_overlay_adds_its_logger(name: str) -> None:
    """The recipe's own stay, and with them the folder of the run."""
    paths = [str(recipe.find(one)) for one in ("testbed/localizer", f"trainer/{name}")]
    config = training_cli(["-c", paths[0], "-c", paths[1]], run=False, instantiate=False).config
    kinds = [one.class_path.rpartition(".")[2] for one in config.trainer.logger]
    assert kinds == ["CSVLog", "TensorBoardLogger", LOGGERS[name]]


@pytest.mark.parametrize("name", LOGGERS)
def test_a_missing_package_is_named_with_its_extra(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    if importlib.util.find_spec(name):
        pytest.skip(f"{name} is installed")
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "-c", "testbed/localizer", "-c", f"trainer/{name}"]) == 2
    told = f"cropl: error: trainer.logger: {name} is not installed: {remedy('tracking')}"
    assert told in capsys.readouterr().err.splitlines()
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
@pytest.mark.parametrize("name", LOGGERS)
def test_a_training_is_tracked_on_this_machine(name: str, tmp_path: Path) -> None:
    if not importlib.util.find_spec(name):
        pytest.skip(f"{name} is not installed: {remedy('tracking')}")
    small = (
        "--data.scenes 8 --data.val_scenes 4 --data.batch_size 4 --trainer.max_steps 2 "
        "--trainer.val_check_interval 1 --trainer.log_every_n_steps 1"
    )
    command = [sys.executable, "-m", "cropl", "fit", "-c", "testbed/localizer", "-c", f"trainer/{name}", "-c",
               "trainer/cpu", *small.split()]  # fmt: skip
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    if name == "wandb":
        (run,) = (tmp_path / "runs/wandb").glob("offline-run-*")
        assert list(run.glob("files/media/images/regions*.png"))
        return

    from mlflow import MlflowClient

    client = MlflowClient(f"sqlite:///{tmp_path}/mlflow.db")
    (run,) = client.search_runs([client.get_experiment_by_name("cropl").experiment_id])
    assert run.info.status == "FINISHED" and "train/loss" in run.data.metrics
    assert list((tmp_path / "runs/mlflow").rglob("images/regions*.png"))
