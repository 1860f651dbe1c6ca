"""Writes the trained model as a plain folder when training ends."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.cli import SaveConfigCallback


class Export(L.Callback):
    """Calls ``module.export(folder, dtype)`` at the end of ``fit``, on all processes: together they have the weights.

    ``module.facts`` says before what the model card is to say of the training: ``recipe``, ``data``, ``metrics`` and
    ``steps``.

    Args:
        folder: where to write; made if it is not there, and an earlier checkpoint there is replaced.
        dtype: of the weights on disk, such as ``float16``; None keeps the training's.

    Raises:
        ValueError: before the training, where ``folder`` holds something else than a checkpoint.
    """

    def __init__(self, folder: str, dtype: str | None = None):
        self.folder, self.dtype = Path(folder), dtype

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        """Refuse a folder now that could not be replaced at the end."""
        others = self.folder.is_dir() and any(self.folder.iterdir()) and not (self.folder / "config.json").is_file()
        if stage == "fit" and (others or self.folder.is_file()):
            raise ValueError(f"{self.folder} is there and is no checkpoint: give Export a new folder")

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not getattr(trainer, "fast_dev_run", False):
            module.facts = facts(trainer)  # type: ignore[assignment]
            module.export(self.folder, self.dtype)  # type: ignore[operator]


def facts(trainer: L.Trainer) -> dict[str, Any]:
    """What a model card says of a training: its resolved recipe, data, last validation metrics, optimizer steps."""
    found: dict[str, Any] = {"steps": trainer.global_step}
    callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by a connector
    for callback in callbacks:
        if isinstance(callback, SaveConfigCallback):
            found["recipe"] = callback.parser.dump(callback.config, skip_default=True)
    data: Any = trainer.datamodule  # type: ignore[attr-defined]  # set by a connector
    if data is not None:
        folders = getattr(data, "folders", {}).get("train") or []
        listed = ", ".join(f"`{folder}`" for folder in ([folders] if isinstance(folders, str) else folders))
        found["data"] = f"{type(data).__name__}{f' of {listed}' if listed else ''}"
    metrics = trainer.callback_metrics.items()
    found["metrics"] = {name: float(value) for name, value in metrics if name.startswith("val/")}
    return found
