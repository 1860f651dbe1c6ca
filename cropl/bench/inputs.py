"""What the data path is measured on: shards of photographs, and image processors that need no weights."""

from __future__ import annotations

import io
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from PIL import Image
from transformers import CLIPImageProcessorPil, Qwen2VLImageProcessorPil

from cropl.data.collate import Prepared
from cropl.data.images import load_image
from cropl.data.sample import Sample
from cropl.data.writer import ShardWriter
from cropl.errors import UsageError, nearest
from cropl.grid import Region
from cropl.models.llava import LlavaVLM, PaddedSquare
from cropl.models.loading import load_config, load_image_processor
from cropl.models.qwen2_vl import MergedPatches, Qwen2VLVLM, QwenProcessor
from cropl.models.vlm import family
from cropl.testbed import weights
from cropl.testbed.samples import samples
from cropl.testbed.world import PHOTO_FOLDER

Prepare = Callable[[Image.Image], Prepared]

LONGEST = 640
QUALITY = 95
"""Keeps the size of the files: about 110 kB."""


def _llava() -> Prepare:
    return PaddedSquare(CLIPImageProcessorPil(), size=336, side=24)


def _qwen2_vl() -> Prepare:
    image_processor = Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=28 * 28 * 16384)
    return MergedPatches(image_processor, QwenProcessor(image_processor, None).size, merge=2)


PROCESSORS: dict[str, Callable[[], Prepare]] = {"llava-1.5": _llava, "qwen2-vl": _qwen2_vl}
"""Image processors of published checkpoints, from their published numbers: LLaVA-1.5 at 336 x 336, Qwen2-VL with its
patches of 14 and this package's bound of 448 x 448."""


def published_processor(name: str) -> Prepare:
    """What `VLM.prepare` is for a published checkpoint; nothing is fetched.

    Raises:
        UsageError: there is none of this name.
    """
    if name not in PROCESSORS:
        raise UsageError(f"unknown processor {name!r}{nearest(name, list(PROCESSORS), 'processors')}")
    return PROCESSORS[name]()


def checkpoint_processor(name_or_path: str) -> Prepare:
    """What `VLM.prepare` is for a checkpoint, from its config and its image processor alone.

    Args:
        name_or_path: folder, hub name, or `testbed:NAME`.

    Raises:
        ModelLoadError: one of the two cannot be read.
        ValueError: the family of the model is not supported.
    """
    folder = weights.resolve(name_or_path)
    config = load_config(folder)
    found, image_processor = family(config.model_type), load_image_processor(folder)
    vision = config.vision_config
    if found is LlavaVLM:
        return PaddedSquare(image_processor, vision.image_size, vision.image_size // vision.patch_size)
    if found is Qwen2VLVLM:
        return MergedPatches(image_processor, QwenProcessor(image_processor, None).size, vision.spatial_merge_size)
    raise UsageError(f"{name_or_path}: the image processor of {found.__name__} cannot be measured without its weights")


def write_photographs(folder: Path, count: int, samples_per_shard: int) -> None:
    """Write shards of `count` photographs of `LONGEST` pixels with questions, the same in every run.

    They are crops of the testbed's photographs, re-encoded; the questions are the testbed's and mean something else.
    """
    rng = random.Random(0)
    photos = [load_image(path) for path in sorted(PHOTO_FOLDER.glob("*.jpg"))]
    with ShardWriter(folder, "photographs", samples_per_shard) as writer:
        for number, sample in enumerate(samples("train", count)):
            writer.write(_photograph(sample, photos[number % len(photos)], rng))


def _photograph(sample: Sample, photo: Image.Image, rng: random.Random) -> Sample:
    share = rng.uniform(0.8, 1)
    width, height = share * photo.width, share * photo.height
    x, y = rng.uniform(0, photo.width - width), rng.uniform(0, photo.height - height)
    scale = LONGEST / max(photo.size)
    size = (round(scale * photo.width), round(scale * photo.height))
    picture = photo.resize(size, Image.Resampling.BICUBIC, box=(x, y, x + width, y + height))
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=QUALITY)
    across, down = size[0] / sample.width, size[1] / sample.height
    boxes = [(x0 * across, y0 * down, x1 * across, y1 * down) for x0, y0, x1, y1 in sample.boxes]
    region = Region.from_boxes(boxes, *size)
    return replace(sample, image=file.getvalue(), width=size[0], height=size[1], boxes=boxes, region=region)
