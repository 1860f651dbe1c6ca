"""Signals: whenever they come, one complete checkpoint of the end of a step, and a documented exit code."""

from __future__ import annotations

import os
import signal

import pytest

from cropl.callbacks import complete
from cropl.callbacks.preemption import TERMINATED, Preempted
from tests.callbacks.runs import ACCUMULATE, Draws, fit


class Signalled(Draws):
    """Gets signals at a place of the training."""

    def __init__(self, where: str, number: int = signal.SIGTERM, times: int = 1):
        super().__init__()
        self.where, self.number, self.times = where, number, times

    def _here(self, place: str) -> None:
        if place == self.where:
            for _ in range(self.times):
                os.kill(os.getpid(), self.number)

    def training_step(self, batch, index):
        if self.global_step == 1:
            self._here("first batch" if index % ACCUMULATE == 0 else "last batch")
        return super().training_step(batch, index)

    def on_before_zero_grad(self, optimizer):
        if self.global_step == 1:
            self._here("optimizer")

    def validation_step(self, batch, index):
        super().validation_step(batch, index)
        self._here(f"validation {index}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    return fit(tmp_path_factory.mktemp("whole"), ckpt_every_n_train_steps=50)[0].steps


@pytest.mark.parametrize(
    ("where", "times"),
    [("first batch", 2), ("last batch", 1), ("optimizer", 1), ("validation 0", 2), ("validation 1", 1)],
)
def test_sigterm_saves_the_end_of_a_step(whole, tmp_path, where, times):
    before = signal.getsignal(signal.SIGTERM)
    module = Signalled(where, times=times)
    with pytest.raises(Preempted) as end:
        fit(tmp_path, module=module, ckpt_every_n_train_steps=50)
    assert end.value.code == TERMINATED == 143
    assert signal.getsignal(signal.SIGTERM) == before
    (saved,) = complete.complete(tmp_path)
    assert saved.name == "step-000002" and not complete.damage(saved)
    continued, _ = fit(tmp_path, "last", ckpt_every_n_train_steps=50)
    assert module.steps + continued.steps == whole


def slurm(monkeypatch, folder, script):
    tool = folder / "bin" / "scontrol"
    tool.parent.mkdir()
    tool.write_text(f"#!/bin/sh\n{script}\n")
    tool.chmod(0o755)
    settings = {
        "PATH": f"{tool.parent}:{os.environ['PATH']}", "SLURM_JOB_ID": "77", "SLURM_NTASKS": "1", "SLURM_NODEID": "0",
        "SLURM_PROCID": "0", "SLURM_LOCALID": "0", "SLURM_JOB_NAME": "train", "SLURM_NODELIST": "here",
    }  # fmt: skip
    for name, value in settings.items():
        monkeypatch.setenv(name, value)


def test_slurm_requeues_a_job_that_is_saved(whole, tmp_path, monkeypatch):
    run = tmp_path / "run"
    slurm(monkeypatch, tmp_path, f'ls {run} > {tmp_path}/seen\necho "$@" > {tmp_path}/told')
    module = Signalled("first batch", signal.SIGUSR1)
    with pytest.raises(Preempted):
        fit(run, module=module, ckpt_every_n_train_steps=50)
    assert (tmp_path / "told").read_text() == "requeue 77\n" and (tmp_path / "seen").read_text() == "step-000002\n"
    continued, _ = fit(run, "last", ckpt_every_n_train_steps=50)
    assert module.steps + continued.steps == whole


def test_slurm_that_does_not_answer_is_told(tmp_path, monkeypatch, caplog):
    slurm(monkeypatch, tmp_path, "exit 3")
    with pytest.raises(Preempted):
        fit(tmp_path / "run", module=Signalled("first batch", signal.SIGUSR1), ckpt_every_n_train_steps=50)
    assert "the job 77 cannot be requeued" in caplog.text
    assert complete.complete(tmp_path / "run")
