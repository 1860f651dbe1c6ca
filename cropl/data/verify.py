"""Finding every damage in a folder of shards: files, structure, index, bytes and, if asked, each image and record.

`Manifest.verify` stops at the first difference, before a run; this looks at everything and says where the damage lies.
"""

import json
import os
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Protocol

from cropl.data.files import sha256_of
from cropl.data.images import load_image
from cropl.data.manifest import NAME, Entry, Manifest, Shard, ShardError
from cropl.data.remote import without_secrets
from cropl.data.sample import Sample
from cropl.data.tarball import index_shard

THREADS = min(8, os.cpu_count() or 1)
"""Shards that are hashed at once; hashing and decoding leave Python's lock."""

_CHANGED = "its SHA-256 differs from the manifest's: a bit flipped, or a member was replaced"


class Progress(Protocol):
    """Who is told how far a long task is."""

    def stage(self, name: str, total: int) -> None:
        """Begin a stage of `total` steps."""

    def advance(self, detail: str, count: int = 1) -> None:
        """`count` more are done; `detail` says what is being worked on."""


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong: the file in the folder, and what about it."""

    file: str
    message: str


def verify_folder(folder: str | Path, images: bool = False, progress: Progress | None = None) -> list[Fault]:
    """All that is wrong with a folder of shards; nothing if it is sound.

    Without a usable manifest, that is the first fault, and the structure of every tar file in the folder is checked.

    Args:
        folder: a local folder.
        images: decode every image and record too, and check that they belong together.
        progress: told of every shard.

    Raises:
        ShardError: there is no such folder, or it holds neither a manifest nor shards, or it is an address.
    """
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", str(folder)):
        raise ShardError(
            f"{without_secrets(str(folder))}: only local folders are verified; shards at an address are hashed when "
            "they are fetched"
        )
    folder = Path(folder)
    if not folder.is_dir():
        raise ShardError(f"{folder}: no such folder")
    faults: list[Fault] = []
    shards: dict[str, Shard | None]
    try:
        shards = {shard.file: shard for shard in Manifest.read(folder).shards}
    except ShardError as error:
        shards = dict.fromkeys(tar_files(folder))
        if not shards and not (folder / NAME).exists():
            raise
        faults.append(Fault(NAME, _about(error, folder / NAME)))
    if progress is not None:
        progress.stage(f"verify {folder.name or folder}", len(shards))

    def check(item: tuple[str, Shard | None]) -> list[str]:
        return check_shard(folder / item[0], item[1], images)

    with ThreadPoolExecutor(THREADS) as pool:
        for file, messages in zip(shards, pool.map(check, shards.items())):
            faults += [Fault(file, message) for message in messages]
            if progress is not None:
                progress.advance(file)
    return faults


def tar_files(folder: str | Path) -> list[str]:
    """Names of the tar files in a folder, sorted."""
    return sorted(path.name for path in Path(folder).glob("*.tar"))


def check_shard(path: Path, shard: Shard | None, images: bool = False) -> list[str]:
    """What is wrong with one shard, given what the manifest says of it; None checks its structure alone."""
    if not path.is_file():
        return ["the shard is missing; restore it or build the shards again"]
    try:
        size = path.stat().st_size
        wrong_size = f"{size:,} bytes, the manifest says {shard.bytes:,}" if shard and size != shard.bytes else ""
        try:
            rows = index_shard(path)
        except ShardError as error:
            return ["; ".join(filter(None, (wrong_size, _about(error, path))))]
        if shard is None:
            return []
        moved = _difference(rows, shard.entries)
        if wrong_size or moved:
            return ["; ".join(filter(None, (wrong_size, moved or "every sample is in its place, the end was changed")))]
        changed = sha256_of(path) != shard.sha256
        bad = list(islice(_bad_samples(path, shard), None if images else 1)) if changed or images else []
    except OSError as error:
        return [f"cannot be read ({(error.strerror or str(error)).lower()})"]
    if changed:
        place = bad[0] if bad else "every sample still decodes, so the damage cannot be placed"
        return [f"{_CHANGED}; {place}", *bad[1:]]
    return bad


def _difference(rows: Sequence[tuple[str, str, int, int, int, int]], entries: Sequence[Entry]) -> str:
    """Where the shard's own index departs from the manifest's."""
    for row, entry in zip(rows, entries):
        if row[0] != entry.key:
            return f"sample {row[0]!r} stands where the manifest says {entry.key!r}; the shard was replaced"
        if row != (entry.key, *entry[2:7]):
            return f"sample {entry.key!r} is of another size or at another place than the manifest says"
    if len(rows) != len(entries):
        return f"{len(rows):,} samples, the manifest says {len(entries):,}; the shard was replaced"
    return ""


def _bad_samples(path: Path, shard: Shard) -> Iterator[str]:
    """Of every sample that cannot be decoded, or is not what the manifest says, its key and why."""
    with open(path, "rb") as file:
        for entry in shard.entries:
            text = os.pread(file.fileno(), entry.json_bytes, entry.json_offset)
            data = os.pread(file.fileno(), entry.image_bytes, entry.image_offset)
            try:
                _check_sample(entry, text, data)
            except (ValueError, ArithmeticError, RecursionError) as error:
                yield f"sample {entry.key!r}: {str(error).removeprefix(f'sample {entry.key!r}: ')}"


def _check_sample(entry: Entry, text: bytes, data: bytes) -> None:
    image = load_image(data, "in the shard") if entry.extension else None
    sample = Sample.from_json(json.loads(text), image)
    size = image.size if image else (0, 0)
    if not size == (sample.width, sample.height) == (entry.width, entry.height):
        raise ShardError(
            f"the image is {size[0]}x{size[1]}, its record says {sample.width}x{sample.height} and the manifest "
            f"{entry.width}x{entry.height}"
        )
    told = (sample.key, sample.source, len(sample.boxes), len(sample.answers))
    if told != (entry.key, entry.source, entry.boxes, entry.answers):
        raise ShardError("the record's key, source or number of boxes or answers is not what the manifest says")


def _about(error: ShardError, path: Path) -> str:
    return str(error).removeprefix(f"{path}: ")
