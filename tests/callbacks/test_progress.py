"""Progress: without a terminal lines with the step, its total and the scores, and a bar of all steps on one."""

from __future__ import annotations

import io

import pytest
import torch
from rich.console import Console

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


class Scores(Scored):
    def training_step(self, batch, index):
        self.log_dict({"train/token_accuracy": torch.tensor(0.5), "train/evidence": torch.tensor(0.25)}, prog_bar=True)
        return super().training_step(batch, index)

    def validation_step(self, batch, index):
        self.log_dict({f"val/recall_gt_0.{tenth}": torch.tensor(0.75) for tenth in range(9)}, prog_bar=True)


def on_terminal(monkeypatch, width: int) -> None:
    screen = type("Screen", (), {"is_terminal": True, "width": width})
    monkeypatch.setattr("cropl.callbacks.progress.get_console", lambda: screen)


def test_on_a_terminal_there_is_a_bar(tmp_path, monkeypatch, capsys) -> None:
    on_terminal(monkeypatch, 80)
    bar = Progress(seconds=0)
    fit(tmp_path, module=Scored(), callbacks=[bar], max_epochs=2, enable_progress_bar=True)
    assert bar.train_progress_bar.total == 8 and bar.train_progress_bar.completed == 8
    assert not any(line.startswith("step ") for line in told(capsys))


@pytest.mark.parametrize(("width", "scores"), [(60, 1), (80, 2), (119, 3), (120, 1), (160, 3), (400, 12)])
def test_the_bar_is_one_line(tmp_path, monkeypatch, width: int, scores: int) -> None:
    on_terminal(monkeypatch, width)
    bar = Progress(seconds=0)
    fit(tmp_path, module=Scores(), callbacks=[bar], max_epochs=2, enable_progress_bar=True)
    for shown in ([bar.train_progress_bar], bar.progress.tasks):  # without and with the validation's
        for task in shown:
            task.visible = True
        console = Console(file=io.StringIO(), width=width)
        console.print(bar.progress.make_tasks_table(shown))
        lines = console.file.getvalue().splitlines()
        assert len(lines) == len(shown) and max(map(len, lines)) <= width, lines
        assert "8/8" in lines[0] and lines[0].count(": ") == scores and "loss: " in lines[0]
        assert ("left" in lines[0]) == (width < 120)
