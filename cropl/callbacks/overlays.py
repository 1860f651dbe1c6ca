"""Draws predicted and true regions on sample pictures after each validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from PIL import Image

from cropl.callbacks.tracking import log_image
from cropl.drawing import PREDICTED, TRUE, contact_sheet, draw_regions
from cropl.grid import Region

_LEGEND = {"true region": TRUE, "predicted region": PREDICTED}


class RegionOverlays(L.Callback):
    """Writes a contact sheet of the first validation questions to ``<log folder>/regions/step-N.png``, and to loggers.

    True regions are green, predicted ones red. The module's ``validation_step`` returns ``{"regions": [...]}``, one for
    each question of the batch; the batch has ``questions`` and ``pictures`` (functions that give a PIL picture).

    Args:
        count: number of questions drawn.
    """

    def __init__(self, count: int = 12):
        self.count = count
        self._drawn: list[Image.Image] = []
        self._log_dir = Path()

    def setup(self, trainer: L.Trainer, module: L.LightningModule, stage: str) -> None:
        """Here, since all processes have to ask for the log folder together."""
        self._log_dir = Path(trainer.log_dir or trainer.default_root_dir)

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._drawn = []

    def on_validation_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        missing = self.count - len(self._drawn)
        if missing <= 0 or not trainer.is_global_zero:
            return
        predicted = iter((outputs or {}).get("regions", []))
        images = batch.get("images", range(len(batch["questions"])))
        for image, rows in zip(images, batch["questions"]):
            for row in rows:
                region = next(predicted, None)
                if region is not None and image is not None and len(self._drawn) < self.count:
                    regions = [(Region(*row["region"]), TRUE), (region, PREDICTED)]
                    self._drawn.append(draw_regions(batch["pictures"][image](), row["question"], regions))

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not self._drawn or trainer.sanity_checking:
            return
        sheet = contact_sheet(self._drawn, _LEGEND)
        folder = self._log_dir / "regions"
        folder.mkdir(parents=True, exist_ok=True)
        sheet.save(folder / f"step-{trainer.global_step:06d}.png")
        log_image(trainer.loggers, "regions", sheet, trainer.global_step)
