"""Predictions of any number of processes: each sample once, sorted, and the file is there whole or not at all."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from types import SimpleNamespace

import lightning as L
import pytest
import torch

from cropl.callbacks.predictions import Predictions, merged
from cropl.data.predicted import read_regions
from cropl.data.writer import ShardWriter
from cropl.datamodules.shards import ShardsDataModule
from cropl.errors import RunError
from tests.data.conftest import make_sample

COUNT = 7


class Guess(L.LightningModule):
    """Predicts the number of a sample, and a region where it is even."""

    def predict_step(self, batch, index):
        found = []
        for sample in batch:
            number = int(sample.key[1:])
            region = None if number % 2 else [0, 0, number, 7]
            if sample.valid:
                found.append({"key": sample.key, "prediction": f"é {number}", "region": region})
        return found


def predict(folder, out, devices=1):
    callback = Predictions(out, regions=True)
    trainer = L.Trainer(
        accelerator="cpu", devices=devices, strategy="ddp" if devices > 1 else "auto", logger=False,
        enable_progress_bar=False, enable_model_summary=False, callbacks=[callback], use_distributed_sampler=False,
    )  # fmt: skip
    data = ShardsDataModule(test_dir=folder, eval_batch=2, num_workers=0)
    trainer.predict(Guess(), data, return_predictions=False)


@pytest.fixture
def folder(tmp_path):
    with ShardWriter(tmp_path / "shards", samples_per_shard=3) as writer:
        for number in reversed(range(COUNT)):
            writer.write(make_sample(number, "test"))
    return str(tmp_path / "shards")


def check(out):
    assert sorted(path.name for path in out.iterdir()) == ["predictions.jsonl", "regions.jsonl"]
    rows = [json.loads(line) for line in (out / "predictions.jsonl").read_text(encoding="utf-8").splitlines()]
    assert [row["key"] for row in rows] == [f"s{number:04d}" for number in range(COUNT)]
    assert [row["prediction"] for row in rows] == [f"é {number}" for number in range(COUNT)]
    assert read_regions(out / "regions.jsonl") == {
        ("key", f"s{number:04d}"): (0, 0, number, 7) for number in (0, 2, 4, 6)
    }


def test_every_sample_is_written_once(folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "predictions.jsonl").write_text("an earlier one")
    for _ in range(2):  # the second time over the first
        predict(folder, str(tmp_path / "out"))
        check(tmp_path / "out")


@pytest.mark.slow
def test_two_processes_write_the_same_file(folder, tmp_path):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    command = [sys.executable, "-m", "tests.callbacks.test_predictions", folder, str(tmp_path / "out")]
    known = {**os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": "2", "NODE_RANK": "0"}
    ranks = [subprocess.Popen(command, env={**known, "LOCAL_RANK": str(rank)}) for rank in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    check(tmp_path / "out")


def test_parts_of_processes_are_merged(tmp_path):
    """What one process would find of two, without a second one."""
    callback = Predictions(str(tmp_path))
    strategy = SimpleNamespace(barrier=lambda name: None)
    for rank, keys in ((1, "ca"), (0, "bc")):
        trainer = SimpleNamespace(global_rank=rank, world_size=2, is_global_zero=rank == 0, strategy=strategy)
        callback.on_predict_start(trainer, None)
        callback.write_on_batch_end(trainer, None, [{"key": key} for key in keys], None, None, 0, 0)
        callback.on_predict_end(trainer, None)
    assert (tmp_path / "predictions.jsonl").read_text() == '{"key": "a"}\n{"key": "b"}\n{"key": "c"}\n'


@pytest.mark.parametrize("end", ["\u2028", "\u2029", "\u0085", "\r\n", "\x1e"])
def test_a_text_may_hold_what_ends_a_line_elsewhere(tmp_path, end):
    callback = Predictions(str(tmp_path), regions=True)
    trainer = SimpleNamespace(
        global_rank=0, world_size=1, is_global_zero=True, strategy=SimpleNamespace(barrier=lambda name: None)
    )
    rows = [{"key": f"{number}{end}", "question": f"one{end}two", "region": [0, 0, 1, 1]} for number in range(2)]
    callback.on_predict_start(trainer, None)
    callback.write_on_batch_end(trainer, None, rows, None, None, 0, 0)
    callback.on_predict_end(trainer, None)
    lines = (tmp_path / "predictions.jsonl").read_bytes().decode().removesuffix("\n").split("\n")
    assert [json.loads(line) for line in lines] == rows
    assert read_regions(tmp_path / "regions.jsonl") == {("key", row["key"]): (0, 0, 1, 1) for row in rows}


def test_a_folder_that_not_all_machines_see_is_told(tmp_path):
    """The part of process 1 lies on its own machine."""
    strategy = SimpleNamespace(barrier=lambda name: None)
    trainer = SimpleNamespace(global_rank=0, world_size=2, is_global_zero=True, strategy=strategy)
    callback = Predictions(str(tmp_path))
    callback.on_predict_start(trainer, None)
    with pytest.raises(RunError, match=f"predictions of process 1 are not in {tmp_path}: all machines must see this"):
        callback.on_predict_end(trainer, None)
    assert not (tmp_path / "predictions.jsonl").exists() and (tmp_path / ".predictions.0.jsonl").exists()


def test_two_answers_for_a_sample_are_an_error():
    with pytest.raises(ValueError, match="sample 'a' has two predictions that differ"):
        merged(['{"key": "a", "x": 1}', '{"key": "a", "x": 2}'])


@pytest.mark.parametrize(
    "row", [{}, {"key": 3}, "text", {"key": "a", "x": float("nan")}, {"key": "a", "x": torch.ones(1)}]
)
def test_what_cannot_be_written_is_named(tmp_path, row):
    callback = Predictions(str(tmp_path / "out"))
    trainer = SimpleNamespace(global_rank=0)
    callback.on_predict_start(trainer, None)
    with pytest.raises(ValueError, match="needs the key|of sample 'a' cannot be written"):
        callback.write_on_batch_end(trainer, None, [row], None, None, 0, 0)
    assert not (tmp_path / "out" / "predictions.jsonl").exists()


if __name__ == "__main__":
    predict(sys.argv[1], sys.argv[2], devices=2)
