"""Backgrounds of the scenes: crops of licensed photographs and procedural textures.

A photograph belongs to one split (``photos/photos.json``), so those behind test scenes are never seen in training.
"""

from __future__ import annotations

import json
import random
from functools import cache

import numpy as np
from PIL import Image, ImageEnhance

from cropl.testbed.world import PHOTO_FOLDER


@cache
def _photos(split: str) -> tuple[Image.Image, ...]:
    rows = json.loads((PHOTO_FOLDER / "photos.json").read_text())
    return tuple(Image.open(PHOTO_FOLDER / row["file"]).convert("RGB") for row in rows if row["split"] == split)


def background(rng: random.Random, split: str, width: int, height: int) -> Image.Image:
    """A ``width`` x ``height`` picture: half of them photographs, half textures, all of moderate contrast."""
    picture = _photo(rng, split, width, height) if rng.random() < 0.5 else _texture(rng, width, height)
    picture = ImageEnhance.Contrast(picture).enhance(rng.uniform(0.5, 0.9))
    return ImageEnhance.Color(picture).enhance(rng.uniform(0.3, 0.8))


def _photo(rng: random.Random, split: str, width: int, height: int) -> Image.Image:
    photo = rng.choice(_photos(split))
    largest = min(photo.width / width, photo.height / height)
    zoom = largest * rng.uniform(0.6, 1.0)
    w, h = zoom * width, zoom * height
    x, y = rng.uniform(0, photo.width - w), rng.uniform(0, photo.height - h)
    crop = photo.resize((width, height), Image.Resampling.BILINEAR, box=(x, y, x + w, y + h))
    return crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if rng.random() < 0.5 else crop


def _texture(rng: random.Random, width: int, height: int) -> Image.Image:
    """Smooth noise between two muted colours, under a faint pattern of stripes, checks or nothing."""
    noise_rng = np.random.default_rng(rng.getrandbits(32))
    coarse = noise_rng.random((rng.randint(2, 9), rng.randint(2, 9)), dtype=np.float32)
    field = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    mix_HW = np.clip(np.asarray(field), 0, 1)
    y_H1, x_1W = np.arange(height)[:, None], np.arange(width)[None, :]
    period = rng.randint(12, 48)
    pattern = rng.choice(("plain", "stripes", "checks"))
    if pattern == "stripes":
        mix_HW = np.clip(mix_HW + 0.25 * (((x_1W + rng.choice((-1, 0, 1)) * y_H1) // period) % 2), 0, 1)
    elif pattern == "checks":
        mix_HW = np.clip(mix_HW + 0.25 * ((x_1W // period + y_H1 // period) % 2), 0, 1)
    dark, light = (np.array([rng.randint(60, 200) for _ in range(3)], dtype=np.float32) for _ in range(2))
    rgb_HW3 = dark + mix_HW[..., None] * (light - dark)
    return Image.fromarray(rgb_HW3.astype(np.uint8))
