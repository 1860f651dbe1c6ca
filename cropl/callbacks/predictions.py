"""Writes what `cropl predict` finds: one line for each sample, whatever process it was made on."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import BasePredictionWriter

from cropl.callbacks.processes import together
from cropl.errors import RunError


class Predictions(BasePredictionWriter):
    """Writes ``predictions.jsonl``, sorted by key, when all processes are done.

    The module's ``predict_step`` returns a list of dicts with a ``key`` and what can be written as JSON, for real
    samples only; a sample that comes twice all the same is written once. Until the end each process writes down what it
    has, so that memory does not grow with the data.

    Args:
        folder: where to write; made if it is not there. All machines must see it.
        regions: also write ``regions.jsonl`` with the key and the region of each sample that has one, for the argument
            ``regions`` of data modules of shards.

    Raises:
        ValueError: a prediction has no key, or cannot be written as JSON.
        RunError: in all processes, predictions of a sample differ, those of a process are not in the folder, or the
            file cannot be written.
    """

    def __init__(self, folder: str, regions: bool = False) -> None:
        super().__init__("batch")
        self.folder, self.regions = Path(folder), regions

    def on_predict_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """An empty part for each process, ahead of the first batch: a folder that cannot be written fails now."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self._part(trainer.global_rank).write_text("", encoding="utf-8")

    def write_on_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        prediction: Any,
        batch_indices: Sequence[int] | None,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int,
    ) -> None:
        with open(self._part(trainer.global_rank), "a", encoding="utf-8", newline="\n") as part:
            part.writelines(f"{_line(row)}\n" for row in prediction)

    def on_predict_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Merge the parts, in one process, once all are written; where it cannot, all processes end."""
        trainer.strategy.barrier("predictions")
        together(lambda: self._merge(trainer.world_size) if trainer.is_global_zero else None, "no predictions written")

    def _merge(self, world: int) -> None:
        parts = [self._part(rank) for rank in range(world)]
        for rank, part in enumerate(parts):
            if not part.is_file():
                raise RunError(
                    f"the predictions of process {rank} are not in {self.folder}: all machines must see this folder, "
                    "so give one of a file system that they share"
                )
        rows = merged(line for part in parts for line in _lines(part))
        _write(self.folder / "predictions.jsonl", rows)
        if self.regions:
            found = [json.loads(row) for row in rows]
            kept = [{"key": row["key"], "region": row["region"]} for row in found if row.get("region") is not None]
            _write(self.folder / "regions.jsonl", [_line(row) for row in kept])
        for part in parts:
            part.unlink()

    def _part(self, rank: int) -> Path:
        return self.folder / f".predictions.{rank}.jsonl"


def merged(lines: Iterable[str]) -> list[str]:
    """Lines of JSON sorted by their key, each once.

    Raises:
        ValueError: two lines of a key differ.
    """
    found: dict[str, str] = {}
    for line in lines:
        key = json.loads(line)["key"]
        if found.setdefault(key, line) != line:
            raise ValueError(f"sample {key!r} has two predictions that differ: its key is not unique in the data")
    return [found[key] for key in sorted(found)]


def _lines(part: Path) -> Iterator[str]:
    """The lines of a file; texts in them may hold what Unicode takes for a line's end, such as U+2028."""
    with open(part, encoding="utf-8", newline="\n") as file:
        for line in file:
            yield line.removesuffix("\n")


def _line(row: dict[str, Any]) -> str:
    if not isinstance(row, dict) or not isinstance(row.get("key"), str):
        raise ValueError(f"a prediction needs the key of its sample, got {str(row)[:80]}")
    try:
        return json.dumps(row, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(f"the prediction of sample {row['key']!r} cannot be written as JSON: {error}") from None


def _write(path: Path, lines: Iterable[str]) -> None:
    """There whole or not at all."""
    part = path.with_name(f".{path.name}.part")
    with open(part, "w", encoding="utf-8", newline="\n") as file:
        file.writelines(f"{line}\n" for line in lines)
        file.flush()
        os.fsync(file.fileno())
    part.replace(path)
