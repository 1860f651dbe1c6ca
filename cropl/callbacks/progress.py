"""How far a run is: a bar on a terminal, and elsewhere, as in the log of a batch job, a line now and then."""

from __future__ import annotations

import math
import time
from datetime import timedelta
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import RichProgressBar
from lightning.pytorch.callbacks.progress.rich_progress import (
    BatchesProcessedColumn,
    CustomBarColumn,
    CustomTimeColumn,
    ProcessingSpeedColumn,
)
from rich import get_console
from rich.progress import ProgressColumn, Task, TextColumn
from rich.progress_bar import ProgressBar
from rich.text import Text

WIDE = 120
"""Columns of a terminal from which on the bar is long, and has the time that has passed and the speed beside it."""
BAR = {True: 40, False: 10}
OTHERS = {True: len("Validation 0:00:00 • 10:00:00 10.00it/s  "), False: len("Validation 10:00:00 left   ")}
"""What a line takes, wide or not, beside its bar, its steps and its scores."""


class Progress(RichProgressBar):
    """Optimizer steps of the whole training, and batches of everything else.

    On a terminal the bar is one line: it has as many scores as fit, losses first.

    Args:
        seconds: between two lines, where there is no terminal.
        refresh_rate: of the bar, a second.
    """

    def __init__(self, seconds: float = 60.0, refresh_rate: int = 10) -> None:
        super().__init__(refresh_rate=refresh_rate)
        self.seconds, self._plain, self._told = seconds, False, -math.inf
        self._steps: int | float = math.inf

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        super().setup(trainer, pl_module, stage)
        self._plain = not get_console().is_terminal and trainer.is_global_zero
        if not get_console().is_terminal:
            self.disable()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._steps = trainer.estimated_stepping_batches
        super().on_train_start(trainer, pl_module)

    @property
    def total_train_batches(self) -> int | float:
        return self._steps

    def configure_columns(self, trainer: L.Trainer) -> list[ProgressColumn]:
        theme = self.theme
        return [
            TextColumn("[progress.description]{task.description}"),
            _Bar(
                complete_style=theme.progress_bar,
                finished_style=theme.progress_bar_finished,
                pulse_style=theme.progress_bar_pulse,
            ),
            BatchesProcessedColumn(style=theme.batch_progress),
            _Time(style=theme.time),
            _Speed(style=theme.processing_speed),
        ]

    def get_metrics(self, trainer: L.Trainer, pl_module: L.LightningModule) -> dict[str, Any]:
        found = super().get_metrics(trainer, pl_module)
        names = sorted((name for name in found if name != "v_num"), key=_rank)
        steps = 2 * len(str(self._steps)) + 2
        room = get_console().width - BAR[_wide()] - 1 - steps - OTHERS[_wide()]
        shown = {}
        for name in names:
            room -= len(f"{name}: {found[name]:{self.theme.metrics_format}} ")
            if room < -1:  # the last one has no space behind it
                break
            shown[name] = found[name]
        return shown

    def _get_train_description(self, current_epoch: int) -> str:
        return f"epoch {current_epoch}"

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        super().on_train_batch_end(trainer, pl_module, outputs, batch, trainer.global_step - 1)
        self._tell("step", trainer.global_step, self.total_train_batches)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_train_end(trainer, pl_module)
        self._tell("step", trainer.global_step, self.total_train_batches, due=True)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_end(trainer, pl_module)
        if not trainer.sanity_checking and trainer.state.fn == "fit":
            self._tell("validated at step", trainer.global_step, self.total_train_batches, due=True)

    def on_test_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        super().on_test_batch_end(trainer, pl_module, *args, **kwargs)
        self._tell("batch", args[2] + 1, self.total_test_batches_current_dataloader)

    def on_predict_batch_end(self, trainer: L.Trainer, pl_module: Any, *args: Any, **kwargs: Any) -> None:
        super().on_predict_batch_end(trainer, pl_module, *args, **kwargs)
        self._tell("batch", args[2] + 1, self.total_predict_batches_current_dataloader)

    def _tell(self, what: str, done: int, total: int | float, due: bool = False) -> None:
        now = time.monotonic()
        if not self._plain or not (due or now - self._told >= self.seconds):
            return
        self._told = now
        scores = {name: value for name, value in self.trainer.progress_bar_metrics.items() if name != "v_num"}
        told = ", ".join(f"{name} {value:.4g}" for name, value in scores.items() if isinstance(value, float))
        of = f" of {total:.0f}" if math.isfinite(total) else ""
        print(f"{what} {done}{of}{': ' if told else ''}{told}", flush=True)


def _rank(name: str) -> tuple[bool, bool]:
    """Losses, then scores of the validation, then the rest."""
    return not name.endswith("loss"), name.startswith("train/")


def _wide() -> bool:
    return get_console().width >= WIDE


class _Bar(CustomBarColumn):
    def render(self, task: Task) -> ProgressBar:
        self.bar_width = BAR[_wide()]
        return super().render(task)


class _Time(CustomTimeColumn):
    def render(self, task: Task) -> Text:
        if _wide():
            return super().render(task)
        left = "-:--:--" if task.time_remaining is None else str(timedelta(seconds=int(task.time_remaining)))
        return Text(f"{left} left", style=self.style)


class _Speed(ProcessingSpeedColumn):
    def render(self, task: Task) -> Any:
        return super().render(task) if _wide() else Text()
