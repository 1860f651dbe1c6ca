"""Writes the trained model as a plain folder when training ends."""

from __future__ import annotations

from pathlib import Path

import lightning as L


class Export(L.Callback):
    """Calls ``module.export(folder)`` at the end of ``fit``, on the first process.

    Args:
        folder: where to write; made if it is not there.
        dtype: of the weights on disk, such as ``float16``; None keeps the training's.
    """

    def __init__(self, folder: str, dtype: str | None = None):
        self.folder, self.dtype = Path(folder), dtype

    def on_fit_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.is_global_zero and not getattr(trainer, "fast_dev_run", False):
            self.folder.mkdir(parents=True, exist_ok=True)
            module.export(self.folder, self.dtype)  # type: ignore[operator]
