"""Scenes rendered and preprocessed once and kept as memory-mapped arrays: training does not wait for the renderer.

A cache is a folder of ``.npy`` files and a ``cache.json``, written under another name and renamed when it is whole. Its
name ends in a digest of all that it depends on: another image processor or other questions are another cache. It is
derived data: delete it at will.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from rich.progress import track
from torch import Tensor
from torch.utils.data import Dataset
from transformers import AutoConfig, AutoImageProcessor

from cropl.data.aside import written_aside
from cropl.data.collate import cells_in
from cropl.grid import Region, TokenGrid
from cropl.testbed.labels import dense_labels
from cropl.testbed.questions import questions
from cropl.testbed.scenes import VERSION, Scene, scene
from cropl.tiling import Tokens

# N pictures, P patches (of all pictures, in a row), E values of a patch

_ASKED = 32  # scenes whose questions go into the digest: drawing those of all would take as long as loading them


@dataclass(frozen=True)
class SceneKey:
    """What a cache holds: which scenes, preprocessed for which checkpoint's image processor.

    ``digest`` is one of the processor's settings, the tower's patch and merge sizes, and the questions.
    """

    family: str
    split: str
    count: int
    start: int = 0
    version: int = VERSION
    digest: str = ""


@dataclass
class CachedScene:
    """One picture as its family's vision tower takes it, with its dense labels and its questions."""

    pixels: Tensor
    grid_hw: tuple[int, int]
    labels: Tensor
    questions: list[dict[str, Any]]
    tokens: TokenGrid
    picture: Callable[[], Image.Image]


class SceneCache(Dataset[CachedScene]):
    """Scenes ``start`` to ``start + count`` of a split, preprocessed by the processor of ``checkpoint``.

    Items: pixels (3, H, W) for LLaVA or (P, E) flattened patches for Qwen2-VL, normalised float32; labels (V, 8), see
    :class:`~cropl.testbed.labels.DenseLabels`; V are the tower's patches, in its own order.
    """

    def __init__(
        self, checkpoint: str | Path, split: str, count: int, folder: str | Path = "runs/cache", start: int = 0
    ):
        config = AutoConfig.from_pretrained(checkpoint)
        self.processor = AutoImageProcessor.from_pretrained(checkpoint, backend="pil")
        self.merge = getattr(config.vision_config, "spatial_merge_size", 1)
        self.patch = config.vision_config.patch_size
        asked = [
            question_row(one, question)
            for one in (scene(split, index) for index in range(start, start + min(count, _ASKED)))
            for question in questions(one)
        ]
        basis = [self.processor.to_dict(), self.patch, self.merge, asked]
        digest = hashlib.sha256(json.dumps(basis, sort_keys=True, default=str).encode()).hexdigest()[:12]
        self.key = SceneKey(config.model_type, split, count, start, digest=digest)
        self.folder = Path(folder) / f"{self.key.family}-{split}-{start}-{count}-{digest}"
        if not self._is_built():
            self._build()
        self.pixels = np.load(self.folder / "pixels.npy", mmap_mode="r")
        self.labels = np.load(self.folder / "labels.npy", mmap_mode="r")
        self.rows = json.loads((self.folder / "cache.json").read_text())["rows"]
        self.mean = torch.tensor(self.processor.image_mean)
        self.std = torch.tensor(self.processor.image_std)

    def __len__(self) -> int:
        return self.key.count

    def __getitem__(self, index: int) -> CachedScene:
        row = self.rows[index]
        pixels = torch.from_numpy(np.array(self.pixels[row["pixels"][0] : row["pixels"][1]])).float() / 255
        labels = torch.from_numpy(np.array(self.labels[row["labels"][0] : row["labels"][1]])).float()
        if self.key.family == "llava":
            pixels = (pixels[0] - self.mean[:, None, None]) / self.std[:, None, None]
        else:
            pixels = (pixels.unflatten(1, (3, 1, -1)) - self.mean[:, None, None]) / self.std[:, None, None]
            pixels = pixels.expand(-1, 3, 2, -1).flatten(1)  # a still picture fills both frames of a temporal patch
        picture = partial(_render, self.key.split, self.key.start + index)
        one = scene(self.key.split, self.key.start + index)
        rows, columns = (side // self.merge for side in row["grid"])
        if self.key.family == "llava":
            grid = TokenGrid.padded_square(rows, one.width, one.height)
        else:
            grid = TokenGrid.stretched(rows, columns, one.width, one.height)
        return CachedScene(pixels, tuple(row["grid"]), labels, self._with_evidence(one, grid, row), grid, picture)

    def _with_evidence(self, one: Scene, grid: TokenGrid, row: dict[str, Any]) -> list[dict[str, Any]]:
        """The rows of the questions, each with its :func:`evidence`."""
        found = []
        for question, known in zip(questions(one), row["questions"], strict=True):
            if question.text != known["question"]:
                raise ValueError(f"{self.folder}: its questions are not those of this version: delete the folder")
            found.append({**known, "evidence": evidence(question, grid)})
        return found

    def _is_built(self) -> bool:
        try:
            return json.loads((self.folder / "cache.json").read_text())["key"] == asdict(self.key)
        except (OSError, ValueError, KeyError):
            return False

    def _build(self) -> None:
        pixels: list[np.ndarray] = []
        labels: list[np.ndarray] = []
        rows: list[dict[str, Any]] = []
        spans = [0, 0]
        chosen = range(self.key.start, self.key.start + self.key.count)
        for index in track(chosen, description=f"rendering {self.key.split} scenes"):
            one = scene(self.key.split, index)
            pixel_rows, grid_hw = self._preprocess(one)
            label_rows = self._label(one, grid_hw)
            ends = [spans[0] + len(pixel_rows), spans[1] + len(label_rows)]
            rows.append(
                {
                    "pixels": [spans[0], ends[0]],
                    "labels": [spans[1], ends[1]],
                    "grid": grid_hw,
                    "questions": [question_row(one, q) for q in questions(one)],
                }
            )
            spans = ends
            pixels.append(pixel_rows)
            labels.append(label_rows.astype(np.float16))
        with written_aside(self.folder) as aside:
            np.save(aside / "pixels.npy", np.concatenate(pixels))
            np.save(aside / "labels.npy", np.concatenate(labels))
            (aside / "cache.json").write_text(json.dumps({"key": asdict(self.key), "rows": rows}))

    def _preprocess(self, one: Scene) -> tuple[np.ndarray, tuple[int, int]]:
        """Resized pixels as uint8: (1, 3, H, W), or (P, 3 * p * p) patches with the second frame left out."""
        raw = self.processor(images=[one.render()], do_rescale=False, do_normalize=False, return_tensors="np")
        values = np.clip(np.rint(raw["pixel_values"]), 0, 255).astype(np.uint8)
        if self.key.family == "llava":
            return values, (values.shape[2] // self.patch, values.shape[3] // self.patch)
        _, height, width = raw["image_grid_thw"][0]
        frames = values.reshape(len(values), 3, 2, -1)
        return frames[:, :, 0].reshape(len(values), -1), (int(height), int(width))

    def _label(self, one: Scene, grid_hw: tuple[int, int]) -> np.ndarray:
        rows, columns = grid_hw
        if self.key.family == "llava":
            return dense_labels(one, TokenGrid.padded_square(rows, one.width, one.height)).as_row()
        table = dense_labels(one, TokenGrid.stretched(rows, columns, one.width, one.height)).as_row()
        m = self.merge  # Qwen2-VL's patches come block by block of m x m
        blocks = table.reshape(rows // m, m, columns // m, m, -1).transpose(0, 2, 1, 3, 4)
        return blocks.reshape(len(table), -1)


def _render(split: str, index: int) -> Image.Image:
    return scene(split, index).render()


def evidence(question: Any, tokens: Tokens) -> Tensor:
    """Bool (2, V): the decoder's visual tokens on a question's boxes.

    A relation has a row for each of its two things, other questions the same row twice. No token for an absence, whose
    evidence is everything.
    """
    absent = question.kind == "existence" and question.answer == "no"
    boxes = () if absent else question.boxes
    parts = (boxes[:1], boxes[1:]) if question.kind == "relation" else (boxes, boxes)
    return torch.stack([cells_in(part, tokens) for part in parts])


def question_row(one: Scene, question: Any) -> dict[str, Any]:
    """A question as plain JSON, with the grid region of its evidence."""
    region = Region.from_boxes(list(question.boxes), one.width, one.height)
    return {
        "kind": question.kind,
        "question": question.text,
        "answer": question.answer,
        "region": list(region.as_tuple()),
    }
