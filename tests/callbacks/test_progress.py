"""Progress: without a terminal lines with the step, its total and the scores, and a bar of all steps on one."""

from __future__ import annotations

import pytest
import torch

from cropl.callbacks.progress import Progress
from tests.callbacks.runs import STEPS, Draws, fit


class Scored(Draws):
    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        self.log("loss", loss, prog_bar=True)
        return loss

    def validation_step(self, batch, index):
        self.log("score", torch.tensor(0.5), prog_bar=True)


def told(capsys: pytest.CaptureFixture[str]) -> list[str]:
    return [line for line in capsys.readouterr().out.splitlines() if line]


def test_without_a_terminal_there_are_lines(tmp_path, capsys) -> None:
    bar = {"enable_progress_bar": True}
    _, trainer = fit(tmp_path, module=Scored(), callbacks=[Progress(seconds=0)], max_epochs=2, **bar)
    lines = told(capsys)
    assert trainer.global_step == STEPS * 2 // 3 == 8
    assert lines[0].startswith("step 0 of 8: loss ") and lines[-1].startswith("step 8 of 8: loss ")
    assert any(line.startswith("validated at step 2 of 8: ") and "score 0.5" in line for line in lines)
    fit(tmp_path, ckpt="last", module=Scored(), callbacks=[Progress(seconds=1e6)], **bar)
    lines = told(capsys)
    assert [line.split(":")[0] for line in lines if line.startswith("step")] == ["step 8 of 12", "step 12 of 12"]


def test_on_a_terminal_there_is_a_bar(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr("cropl.callbacks.progress.get_console", lambda: type("Screen", (), {"is_terminal": True}))
    bar = Progress(seconds=0)
    fit(tmp_path, module=Scored(), callbacks=[bar], max_epochs=2, enable_progress_bar=True)
    assert bar.train_progress_bar.total == 8 and bar.train_progress_bar.completed == 8
    assert not any(line.startswith("step ") for line in told(capsys))
