"""A training that is continued is the training that was not interrupted, wherever it was saved."""

from __future__ import annotations

import json
import logging
import os
import random
from pathlib import Path

import numpy as np
import pytest
import torch

from cropl.callbacks import complete, rng
from cropl.callbacks.best import BEST
from cropl.callbacks.checkpoint import Checkpoint
from cropl.errors import RunError
from tests.callbacks.runs import ACCUMULATE, STEPS, Draws, fit


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    module, _ = fit(folder)
    return folder, module


def weights_of(folder: Path):
    return torch.load(folder / complete.WHOLE, weights_only=True)


def test_names_and_contents(whole):
    folder, module = whole
    assert [path.name for path in complete.complete(folder)] == [f"step-{n:06d}" for n in range(STEPS, 0, -1)]
    newest = complete.complete(folder)[0]
    assert sorted(os.listdir(newest)) == [complete.WHOLE, complete.MARKER]
    saved = weights_of(newest)
    assert saved["global_step"] == STEPS and len(saved["cropl"]["rng"]) == 1
    assert torch.equal(saved["state_dict"]["layer.weight"], module.layer.weight)
    assert len(module.steps) == STEPS * ACCUMULATE


@pytest.mark.parametrize("step", [1, 2, 3, 4, 6, 8, 11])  # 4 and 8 end an epoch, 2 and 6 are validated
def test_continued_is_uninterrupted(whole, tmp_path, step):
    folder, module = whole
    continued, trainer = fit(tmp_path, folder / f"step-{step:06d}")
    assert continued.steps == module.steps[step * ACCUMULATE :]
    ends = [weights_of(path / f"step-{STEPS:06d}") for path in (folder, tmp_path)]
    assert torch.equal(ends[0]["state_dict"]["layer.weight"], ends[1]["state_dict"]["layer.weight"])
    assert ends[0]["lr_schedulers"] == ends[1]["lr_schedulers"]
    for name in ("exp_avg", "exp_avg_sq", "step"):
        assert torch.equal(*(end["optimizer_states"][0]["state"][0][name] for end in ends))
    assert torch.equal(ends[0]["cropl"]["rng"][0]["torch"], ends[1]["cropl"]["rng"][0]["torch"])


def test_continued_twice_within_an_epoch(whole, tmp_path):
    seen = []
    for stop, ckpt in ((1, None), (2, "last"), (3, "last"), (-1, "last")):
        module, trainer = fit(tmp_path, ckpt, max_steps=stop) if stop > 0 else fit(tmp_path, ckpt)
        seen += module.steps
    batches = [entry[:2] for entry in seen]  # the schedule knows where the training ends, so losses differ
    assert batches == [entry[:2] for entry in whole[1].steps]


def test_how_often_is_validated_changes_nothing(whole, tmp_path):
    module, _ = fit(tmp_path, val_check_interval=2)
    assert module.steps == whole[1].steps


def test_only_steps_are_saved(tmp_path):
    """Not the inside of an accumulation window, also not right after continuing."""
    fit(tmp_path, ckpt_every_n_train_steps=3, max_steps=5)
    assert [path.name for path in complete.complete(tmp_path)] == ["step-000005", "step-000003"]
    stamp = (tmp_path / "step-000003" / complete.MARKER).stat().st_mtime_ns
    module, _ = fit(tmp_path, tmp_path / "step-000003", max_steps=5, ckpt_every_n_train_steps=3)
    assert (tmp_path / "step-000003" / complete.MARKER).stat().st_mtime_ns == stamp
    assert module.steps[0][0] == 3


def test_keep_and_best(tmp_path):
    scores = [0.0, 0.1, 0.9, 0.3, float("nan"), 0.5, 0.2, 0.4, 0.3, 0.1, 0.2, 0.1]
    options = {"ckpt_keep": 2, "ckpt_monitor": "score", "val_check_interval": ACCUMULATE}
    _, trainer = fit(tmp_path, module=Draws(scores=scores), max_steps=6, **options)
    assert [path.name for path in complete.complete(tmp_path)] == ["step-000006", "step-000005", "step-000002"]
    assert trainer.checkpoint_callback.best_model_path.endswith("step-000002")
    _, trainer = fit(tmp_path, "last", module=Draws(scores=scores), max_steps=8, **options)  # it is remembered
    assert [path.name for path in complete.complete(tmp_path)] == ["step-000008", "step-000007", "step-000002"]


def test_a_monitor_that_is_not_logged(tmp_path):
    with pytest.raises(ValueError, match="'accuracy': validation logs no such score"):
        fit(tmp_path, ckpt_monitor="accuracy")


def test_a_new_run_leaves_what_it_finds(tmp_path, caplog):
    fit(tmp_path, max_steps=4)
    with caplog.at_level(logging.WARNING):
        fit(tmp_path, max_steps=2, ckpt_keep=2)
    assert "checkpoints of an earlier run, up to step-000004" in caplog.text
    assert [path.name for path in complete.complete(tmp_path)] == [f"step-00000{n}" for n in (2, 1, 4, 3)]
    module, _ = fit(tmp_path, "last", max_steps=3)
    assert module.steps[0][0] == 2, "the last is what was saved last, not what got furthest"


def test_only_checkpoints_of_the_run_are_deleted(tmp_path, caplog):
    """A run that goes on in another run's folder leaves that one's alone, its best as well; its own are pruned."""
    scores = [0.0, 0.1, 0.9, 0.3, 0.5, 0.5, 0.6, 0.4, 0.2, 0.1, 0.2, 0.1]
    options = {"ckpt_monitor": "score", "val_check_interval": ACCUMULATE, "ckpt_keep": 2}
    fit(tmp_path / "a", module=Draws(scores=scores), max_steps=4, ckpt_keep=2)
    fit(tmp_path / "b", module=Draws(scores=scores), max_steps=12, ckpt_every_n_train_steps=4, **options)
    others = ["step-000012", "step-000008", "step-000002"]
    assert [path.name for path in complete.complete(tmp_path / "b")] == others
    fit(tmp_path / "b", tmp_path / "a" / "step-000004", module=Draws(scores=scores), max_steps=7, **options)
    assert "has checkpoints of an earlier run, up to step-000012" in caplog.text
    assert [path.name for path in complete.complete(tmp_path / "b")] == ["step-000007", "step-000006", *others]
    best = json.loads((tmp_path / "b" / BEST).read_text())
    assert best["name"] == "step-000006", "the other run's score is none of its own"
    fit(tmp_path / "b", "last", module=Draws(scores=scores), max_steps=10, **options)
    mine = ["step-000010", "step-000009", "step-000006"]  # it goes on knowing its own; step 8 has been replaced
    assert [path.name for path in complete.complete(tmp_path / "b")] == [*mine, "step-000012", "step-000002"]


def test_last_without_any_starts_anew(tmp_path):
    module, _ = fit(tmp_path, "last", max_steps=1)
    assert module.steps[0][0] == 0


@pytest.mark.parametrize(
    ("options", "message"),
    [({"keep": 1}, "at least 2"), ({"every_n_train_steps": 0}, "at least 1"), ({"dirpath": "s3://a/b"}, "file system")],
)
def test_options_out_of_range(options, message):
    with pytest.raises(ValueError, match=message):
        Checkpoint(**options)


def test_two_runs_do_not_share_a_folder(tmp_path):
    other = Checkpoint(str(tmp_path))
    other._claim.take(tmp_path)
    with pytest.raises(RunError, match="another run writes into"):
        fit(tmp_path, max_steps=1)
    other._claim.release()
    fit(tmp_path, max_steps=1)
    fit(tmp_path, max_steps=1)  # the first has let go of it


def test_a_background_writer_is_refused(tmp_path):
    from lightning.pytorch.plugins.io import AsyncCheckpointIO

    with pytest.raises(ValueError, match="AsyncCheckpointIO"):
        fit(tmp_path, plugins=[AsyncCheckpointIO()])


def test_another_number_of_processes_is_told(whole, tmp_path, caplog):
    folder, _ = whole
    saved = weights_of(folder / "step-000003")
    two = tmp_path / "two"
    two.mkdir()
    saved["cropl"]["rng"] *= 2
    torch.save(saved, two / "plain.ckpt")
    with caplog.at_level(logging.WARNING):
        module, _ = fit(tmp_path, two / "plain.ckpt", max_steps=4)
    assert "random states of 2 processes, and this run has 1: they are not restored" in caplog.text


def test_random_states_of_all_generators():
    state = rng.capture()
    drawn = [random.random(), random.gauss(0, 1), np.random.randn(), torch.rand(2).tolist()]
    rng.restore(state)
    assert drawn == [random.random(), random.gauss(0, 1), np.random.randn(), torch.rand(2).tolist()]
    random.gauss(0, 1), np.random.randn()  # half of a pair is kept for the next
    state = rng.capture()
    drawn = [random.gauss(0, 1), np.random.randn()]
    rng.restore(state)
    assert drawn == [random.gauss(0, 1), np.random.randn()]


def test_the_last_line_names_log_and_checkpoint(tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("cropl.callbacks.checkpoint.rank_zero_info", said.append)
    fit(tmp_path, max_steps=2)
    assert said == [f"log: {tmp_path}, last checkpoint: {tmp_path / 'step-000002'}"]

    class Interrupted(Draws):
        def training_step(self, batch, index):
            if self.global_step == 3:
                raise KeyboardInterrupt
            return super().training_step(batch, index)

    with pytest.raises(SystemExit):
        fit(tmp_path, "last", module=Interrupted())
    assert said[-1] == f"stopped; `--ckpt_path last` continues from {tmp_path / 'step-000003'}"


def test_last_without_a_checkpoint_says_that_it_starts_anew(tmp_path, caplog):
    _, trainer = fit(tmp_path, ckpt="last", max_steps=1)
    assert trainer.global_step == 1
    assert f"no checkpoint lies in {tmp_path}, and the training starts anew" in caplog.text
