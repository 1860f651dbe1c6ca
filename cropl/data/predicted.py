"""Regions that were predicted beforehand: a file of JSON lines, and the samples of shards that they belong to.

Each line is ``{"key": ..., "region": [x_min, y_min, x_max, y_max]}``, as `cropl predict` writes it. Instead of ``key``
(the sample's) a line may have ``image`` (a file name, its folder is ignored) and, where an image has several questions,
``question``. Other fields and empty lines are ignored, so predictions of other tools can be fed in.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from cropl.data.files import sha256_of
from cropl.data.sample import Sample
from cropl.data.shards import ShardReader
from cropl.grid import Region

# N samples

NONE = 255
"""In place of a coordinate, where a sample has no predicted region."""


Lookup = tuple[str, ...]
"""What a line speaks of: ``("key", KEY)``, ``("image", NAME)`` or ``("question", NAME, QUESTION)``."""


def read_regions(path: str | Path) -> dict[Lookup, tuple[int, int, int, int]]:
    """The regions of a file, by what they are of.

    Raises:
        ValueError: the file is not there, a line is no such object or its region is none, or two lines speak of the
            same; the message names the file and the line.
    """
    found: dict[Lookup, tuple[int, int, int, int]] = {}
    try:
        with open(path, "rb") as lines:  # a line of text also ends at some characters that JSON allows in a question
            for number, line in enumerate(lines, start=1):
                if not line.strip():
                    continue
                try:
                    row = json.loads(line)
                    if isinstance(row, dict) and row.get("region", ()) is None and isinstance(row.get("error"), str):
                        continue  # `cropl answer` could not read the image: it has no region, and none is made up
                    lookup, region = _read_line(row)
                    if lookup in found:
                        raise ValueError(f"a second region for {' / '.join(lookup[1:])}; keep one")
                except (ValueError, RecursionError) as error:
                    raise ValueError(f"{path}: line {number} is no region of a sample: {error}") from None
                found[lookup] = region
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()}); {_remedy()}") from None
    return found


def _read_line(row: Any) -> tuple[Lookup, tuple[int, int, int, int]]:
    if not isinstance(row, dict) or not isinstance(row.get("region"), list) or len(row["region"]) != 4:
        raise ValueError('expected {"key" or "image": ..., "region": [x0, y0, x1, y1]}')
    region = Region(*row["region"]).as_tuple()
    if "key" in row:
        return ("key", _text(row, "key")), region
    if "image" not in row:
        raise ValueError("has neither 'key' nor 'image', so it is unknown which question it is for")
    image = Path(_text(row, "image")).name
    return (("question", image, _text(row, "question")) if "question" in row else ("image", image)), region


def _text(row: Mapping[str, Any], field: str) -> str:
    if not isinstance(row[field], str):
        raise ValueError(f"{field} {row[field]!r} is no text: put it in quotes")
    return str(row[field])


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
                if (region := read[path].get(("key", reader.key(index)))) is not None:
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
