"""Shows some questions with their true and given answers after each validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L

from cropl.callbacks.tracking import log_table

COLUMNS = ("question", "true answer", "given answer")


class SampleAnswers(L.Callback):
    """Writes the first validation questions as a table to ``<log folder>/answers/step-N.md``, and to loggers.

    The module's ``validation_step`` returns ``{"answers": [...]}``, one text for each question of the batch, in order;
    None where it gave none. The batch has ``questions``, each with ``question`` and ``answer``. Steps that return no
    answers add nothing.

    Args:
        count: number of questions.
    """

    def __init__(self, count: int = 12) -> None:
        self.count = count
        self._rows: list[tuple[str, str, str]] = []
        self._log_dir = Path()

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Here, since all processes have to ask for the log folder together."""
        self._log_dir = Path(trainer.log_dir or trainer.default_root_dir)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._rows = []

    def on_validation_batch_end(
        self, trainer: L.Trainer, pl_module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        if not trainer.is_global_zero or not outputs or "answers" not in outputs:
            return
        asked = [row for rows in batch["questions"] for row in rows]
        for row, given in zip(asked, outputs["answers"], strict=True):
            if given is not None and row.get("valid", True) and len(self._rows) < self.count:
                self._rows.append((row["question"], row["answer"], given))

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._rows or trainer.sanity_checking:
            return
        text = table(self._rows)
        folder = self._log_dir / "answers"
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"step-{trainer.global_step:06d}.md").write_text(text, encoding="utf-8")
        log_table(trainer.loggers, "answers", COLUMNS, self._rows, text, trainer.global_step)


def table(rows: list[tuple[str, str, str]]) -> str:
    """Questions, true answers and given ones as a Markdown table; answers that differ are marked."""
    lines = [f"| {' | '.join(COLUMNS)} | |", "|---|---|---|---|"]
    for question, true, given in rows:
        mark = "" if given.strip().lower() == true.strip().lower() else "x"
        lines.append(f"| {_cell(question)} | {_cell(true)} | {_cell(given)} | {mark} |")
    return "\n".join(lines) + "\n"


def _cell(text: str) -> str:
    """On one line, without what would end the cell."""
    short = " ".join(text.split()).replace("\\", "\\\\").replace("|", "\\|")
    return short if len(short) <= 300 else f"{short[:297]}..."
