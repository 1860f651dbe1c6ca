"""Small shards for the data tests."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cropl.data.sample import Sample
from cropl.data.writer import ShardWriter
from cropl.grid import Region


def make_sample(number: int, split: str = "train") -> Sample:
    """A sample whose image and record tell its number."""
    pixels = np.full((6 + number % 3, 8, 3), number % 256, dtype=np.uint8)
    image = Image.fromarray(pixels)
    return Sample(
        key=f"s{number:04d}",
        question=f"Question {number}?",
        answers=[str(number)],
        boxes=[(0, 0, 4, 3)],
        width=image.width,
        height=image.height,
        region=Region.from_boxes([(0, 0, 4, 3)], image.width, image.height),
        kind="count",
        source="numbers",
        split=split,
        image=image,
    )


@pytest.fixture
def write_shards(tmp_path: Path) -> Callable[..., Path]:
    """Writes `count` samples, `per_shard` to a shard, into a folder of the test."""

    def write(count: int = 10, per_shard: int = 4, name: str = "shards") -> Path:
        with ShardWriter(tmp_path / name, samples_per_shard=per_shard) as writer:
            for number in range(count):
                writer.write(make_sample(number))
        return tmp_path / name

    return write
