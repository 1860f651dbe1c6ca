"""Lightning's CSV log, which keeps what an earlier start of the run has written."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.loggers.logger import rank_zero_experiment

FILE = "metrics.csv"


class CSVLog(CSVLogger):
    """Lightning's ``CSVLogger``, which would delete the log of the run that is continued.

    ``metrics.csv`` is the last start's; those of earlier starts are beside it: ``metrics.1.csv`` is the first.
    """

    @property
    @rank_zero_experiment
    def experiment(self) -> Any:
        if self._experiment is None:
            _set_aside(Path(self.log_dir) / FILE)
        return super().experiment


def _set_aside(log: Path) -> None:
    """Give an earlier log the next free number."""
    if log.exists():
        number = 1 + sum(1 for _ in log.parent.glob("metrics.*.csv"))
        log.rename(log.with_name(f"metrics.{number}.csv"))
