"""Regions that a localizer has predicted for the samples of shards: a file of JSON lines, beside them or elsewhere.

Each line is ``{"key": ..., "region": [x_min, y_min, x_max, y_max]}``, as `cropl predict` writes it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from cropl.data.files import sha256_of
from cropl.data.sample import Sample
from cropl.data.shards import ShardReader
from cropl.grid import Region

# N samples

NONE = 255
"""In place of a coordinate, where a sample has no predicted region."""


def read_regions(path: str | Path) -> dict[str, tuple[int, int, int, int]]:
    """The regions of a file, by sample key.

    Raises:
        ValueError: the file is not there or a line is no region of a key, or repeats one; the message names it.
    """
    found: dict[str, tuple[int, int, int, int]] = {}
    try:
        with open(path, encoding="utf-8", errors="replace") as lines:
            for number, line in enumerate(lines, start=1):
                try:
                    row = json.loads(line)
                    key, region = row["key"], Region(*row["region"]).as_tuple()
                    if not isinstance(key, str) or key in found:
                        raise ValueError(f"key {key!r} is {'no text' if not isinstance(key, str) else 'there twice'}")
                except (ValueError, TypeError, KeyError, RecursionError) as error:
                    raise ValueError(f"{path}: line {number} is no region of a sample: {error}") from None
                found[key] = region
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()}); {_remedy()}") from None
    return found


class PredictedRegions:
    """Predicted regions of all samples of a reader, which then come with them as `Sample.predicted`.

    Args:
        reader: the shards.
        folders: their folders, in the reader's order.
        files: a file of regions for all folders, or for some of them by folder; samples of others come without.
        weights: of sources; those with the weight 0 are never visited and need no regions.
        known: all folders that `files` may name, also those of other readers.

    Attributes:
        fingerprint: identifies what the files hold.

    Raises:
        ValueError: a file is missing or damaged, or has no region for a sample that has an image and is visited; or
            `files` names a folder that is none.
    """

    def __init__(
        self,
        reader: ShardReader,
        folders: Sequence[str],
        files: str | Mapping[str, str],
        weights: Mapping[str, float],
        known: Sequence[str] = (),
    ) -> None:
        if not isinstance(files, str) and (others := sorted(set(files) - {*folders, *known})):
            raise ValueError(f"regions names {others[0]!r}; the folders of shards are {', '.join(known or folders)}")
        self.reader = reader
        self.region_N4 = np.full((len(reader), 4), NONE, dtype=np.uint8)
        used = {folder: files if isinstance(files, str) else files.get(folder) for folder in folders}
        hashes = {path: sha256_of(path) if Path(path).is_file() else "" for path in used.values() if path}
        self.fingerprint = [hashes[path] if path else None for path in used.values()]
        read = {path: read_regions(path) for path in hashes}
        visited_S = np.array([weights.get(source, 1) != 0 for source in reader.sources])
        needed_N = visited_S[reader.source_N] & (reader.width_N > 0)
        end = 0
        for folder, size in zip(folders, reader.size_F.tolist(), strict=True):
            start, end = end, end + size
            if (path := used[folder]) is None:
                continue
            lost = []
            for index in range(start, end):
                if (region := read[path].get(reader.key(index))) is not None:
                    self.region_N4[index] = region
                elif needed_N[index]:
                    lost.append(index)
            if lost:
                more = f" and {len(lost) - 1:,} others" if len(lost) > 1 else ""
                raise ValueError(
                    f"{path}: no region for sample {reader.key(lost[0])!r}{more} of {folder}; {_remedy(folder)}"
                )

    def __len__(self) -> int:
        return len(self.reader)

    def __getitem__(self, index: int) -> Sample:
        """The sample with its predicted region; errors are those of `ShardReader`."""
        sample = self.reader[index]
        region = self.region_N4[index].tolist()
        sample.predicted = Region(*region) if region[0] != NONE else None
        return sample


def _remedy(folder: str = "FOLDER") -> str:
    return f"make them with `cropl predict -c localizer/predict --data.test_dir {folder}`"
