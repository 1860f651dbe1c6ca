"""Draws predicted and true regions on sample pictures after each validation."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from PIL import Image, ImageDraw

from cropl.grid import GRID, Region

_TRUE, _PREDICTED = (30, 160, 80), (225, 60, 50)


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

    def on_validation_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self._drawn = []

    def on_validation_batch_end(
        self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int, dataloader_idx: int = 0
    ) -> None:
        missing = self.count - len(self._drawn)
        if missing <= 0 or not trainer.is_global_zero:
            return
        predicted = iter(outputs["regions"] if outputs else [])
        for picture, rows in zip(batch["pictures"], batch["questions"]):
            for row in rows:
                region = next(predicted, None)
                if region is not None and len(self._drawn) < self.count:
                    self._drawn.append(draw_regions(picture(), row["question"], Region(*row["region"]), region))

    def on_validation_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if not self._drawn or trainer.sanity_checking:
            return
        sheet = contact_sheet(self._drawn)
        folder = Path(trainer.log_dir or trainer.default_root_dir) / "regions"
        folder.mkdir(parents=True, exist_ok=True)
        sheet.save(folder / f"step-{trainer.global_step:06d}.png")
        for logger in trainer.loggers:
            add_image = getattr(getattr(logger, "experiment", None), "add_image", None)
            if add_image:
                pixels = torch.frombuffer(bytearray(sheet.tobytes()), dtype=torch.uint8)
                add_image(
                    "regions",
                    pixels.reshape(sheet.height, sheet.width, 3).numpy(),
                    trainer.global_step,
                    dataformats="HWC",
                )


def draw_regions(
    picture: Image.Image, question: str, truth: Region, predicted: Region, width: int = 320
) -> Image.Image:
    """The picture with its 8 x 8 grid, the true region in green, the predicted one in red, the question beneath."""
    height = round(width * picture.height / picture.width)
    tile = Image.new("RGB", (width, height + 30), "white")
    tile.paste(picture.resize((width, height)), (0, 0))
    draw = ImageDraw.Draw(tile)
    for i in range(1, GRID):
        draw.line([(i * width / GRID, 0), (i * width / GRID, height)], fill=(255, 255, 255), width=1)
        draw.line([(0, i * height / GRID), (width, i * height / GRID)], fill=(255, 255, 255), width=1)
    for region, color, inset in ((truth, _TRUE, 1), (predicted, _PREDICTED, 5)):
        x0, y0, x1, y1 = region.edges()
        box = (
            x0 * width / GRID + inset,
            y0 * height / GRID + inset,
            x1 * width / GRID - inset,
            y1 * height / GRID - inset,
        )
        draw.rectangle(box, outline=color, width=4)
    draw.text((6, height + 8), question, fill=(20, 20, 20))
    return tile


def contact_sheet(tiles: list[Image.Image], columns: int = 4, gap: int = 10) -> Image.Image:
    """Tiles of one width in rows, on white."""
    rows = [tiles[i : i + columns] for i in range(0, len(tiles), columns)]
    width = max(sum(t.width + gap for t in row) for row in rows) + gap
    height = sum(max(t.height for t in row) + gap for row in rows) + gap
    sheet = Image.new("RGB", (width, height), "white")
    y = gap
    for row in rows:
        x = gap
        for tile in row:
            sheet.paste(tile, (x, y))
            x += tile.width + gap
        y += max(t.height for t in row) + gap
    return sheet
