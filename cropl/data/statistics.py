"""What is in folders of shards, counted: samples, images, boxes, regions and lengths per source.

Sizes and lengths stand in the manifest; regions are read from the records of samples that have boxes.
"""

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from cropl.data.manifest import Entry, ShardError
from cropl.data.shards import open_folder
from cropl.data.verify import Progress
from cropl.grid import GRID, Region


@dataclass
class SourceCounts:
    """Counts of one source.

    Attributes:
        samples: all of them.
        images, boxed: those with an image, with evidence boxes.
        characters: of all questions and answers.
        blocks: how many of the samples with boxes have a region of 0, 1, ... 64 blocks.
    """

    samples: int = 0
    images: int = 0
    boxed: int = 0
    characters: int = 0
    blocks: list[int] = field(default_factory=lambda: [0] * (GRID * GRID + 1))

    @property
    def mean_region(self) -> float | None:
        """Mean share of the image that the region covers, over samples with boxes; None if there are none."""
        if not self.boxed:
            return None
        return sum(size * count for size, count in enumerate(self.blocks)) / (self.boxed * GRID * GRID)

    def __add__(self, other: "SourceCounts") -> "SourceCounts":
        return SourceCounts(
            self.samples + other.samples,
            self.images + other.images,
            self.boxed + other.boxed,
            self.characters + other.characters,
            [one + two for one, two in zip(self.blocks, other.blocks)],
        )


@dataclass
class Counts:
    """Counts of folders of shards.

    Attributes:
        sources: counts by source, the largest source first.
        sizes: `(width, height)` of every displayed image, by number of pixels.
        shards, bytes: number and size of the files.
    """

    sources: dict[str, SourceCounts]
    sizes: list[tuple[int, int]]
    shards: int
    bytes: int

    @property
    def total(self) -> SourceCounts:
        """All sources together."""
        return sum(self.sources.values(), SourceCounts())


def count_samples(folders: Sequence[str | Path], progress: Progress | None = None) -> Counts:
    """Count what is in folders of shards.

    Raises:
        ShardError: as for `open_folder`; or a record holds no region.
    """
    opened = [open_folder(folder) for folder in folders]
    shards = [(folder.path(shard), shard) for folder, manifest in opened for shard in manifest.shards]
    sources: dict[str, SourceCounts] = {}
    sizes: list[tuple[int, int]] = []
    if progress is not None:
        progress.stage("count", len(shards))
    for path, shard in shards:
        with open(path, "rb") as file:
            for entry in shard.entries:
                counts = sources.setdefault(entry.source, SourceCounts())
                counts.samples += 1
                counts.characters += entry.characters
                if entry.extension:
                    counts.images += 1
                    sizes.append((entry.width, entry.height))
                if entry.boxes:
                    counts.boxed += 1
                    counts.blocks[_region(file.fileno(), entry, path).area] += 1
        if progress is not None:
            progress.advance(shard.file)
    ordered = sorted(sources.items(), key=lambda item: (-item[1].samples, item[0]))
    sizes.sort(key=lambda size: (size[0] * size[1], size))
    return Counts(dict(ordered), sizes, len(shards), sum(shard.bytes for _, shard in shards))


def _region(file: int, entry: Entry, path: Path) -> Region:
    try:
        return Region(*json.loads(os.pread(file, entry.json_bytes, entry.json_offset))["region"])
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise ShardError(
            f"{path}: sample {entry.key!r}: its record holds no region ({error}); `cropl shards verify` says more"
        ) from None
