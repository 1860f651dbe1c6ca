"""The manifest beside a folder of shards: what is in them, byte for byte.

Written last and atomically, so a folder that has one is complete. It records each shard's size and SHA-256 and where
every sample lies in it, which makes damage visible before training and any order of samples cheap to read. The
fingerprint identifies the data set: a run that continues on other data is refused by it.
"""

import hashlib
import json
import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, get_args

from cropl.data.files import sha256_of, sync_folder
from cropl.data.images import EXTENSIONS
from cropl.data.stamp import is_stamped, put_stamp

SCHEMA = 3
NAME = "manifest.json"

KEY = re.compile(r"[A-Za-z0-9_-]{1,95}")
"""What a sample key may be: a dot would end it for a WebDataset reader, a slash make it a path, and with its extension
it fits a plain tar header, which holds 100 characters."""

MAX_MEMBER_BYTES = 1 << 28

_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.tar")

Verify = Literal["off", "size", "once", "full"]


class ShardError(ValueError):
    """Shards or a manifest that can not be used; the message names the file and the remedy."""


class SampleError(ShardError):
    """One sample of a sound shard that can not be used; the message names both."""


class Entry(NamedTuple):
    """Where one sample lies in its shard, and how long it is.

    `width` and `height` are the displayed image's, `characters` counts all that is asked and answered, `boxes` the
    evidence boxes, `answers` the accepted answers: enough to compose batches, and to tell whether samples are fit for a
    training, without reading a shard. Without an image its extension is "" and its sizes are 0.
    """

    key: str
    source: str
    extension: str
    image_offset: int
    image_bytes: int
    json_offset: int
    json_bytes: int
    width: int
    height: int
    characters: int
    boxes: int
    answers: int


@dataclass(frozen=True)
class Shard:
    """One tar file: its name in the folder, its size and hash, and its samples in file order."""

    file: str
    bytes: int
    sha256: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Manifest:
    """All shards of one data set, in order."""

    shards: tuple[Shard, ...]

    def __len__(self) -> int:
        """Number of samples."""
        return sum(len(shard.entries) for shard in self.shards)

    @property
    def fingerprint(self) -> str:
        """SHA-256 over the shards' names, sizes, hashes and samples."""
        return hashlib.sha256(json.dumps(self._body(), separators=(",", ":")).encode()).hexdigest()

    def write(self, folder: str | Path) -> Path:
        """Write `manifest.json` atomically: a reader sees the old one or the whole new one."""
        record = {
            "schema": SCHEMA,
            "fingerprint": self.fingerprint,
            "samples": len(self),
            "entry": Entry._fields,
        } | self._body()
        path = Path(folder) / NAME
        temporary = path.with_name(f".{NAME}.tmp")
        with open(temporary, "w", encoding="utf-8") as file:
            json.dump(record, file, separators=(",", ":"))
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
        sync_folder(path.parent)
        return path

    @classmethod
    def read(cls, folder: str | Path) -> "Manifest":
        """Read and check the manifest of a folder of shards.

        Raises:
            ShardError: there is none, or it is damaged, of another schema, or names files outside the folder.
        """
        path = Path(folder) / NAME
        try:
            text = path.read_bytes()
        except FileNotFoundError:
            if not path.parent.is_dir():
                raise ShardError(f"{path.parent}: no such folder of shards") from None
            raise ShardError(f"{path}: no manifest; the shards are incomplete, or were not written by cropl") from None
        except OSError as error:
            raise ShardError(f"{path}: cannot be read ({(error.strerror or str(error)).lower()})") from None
        return cls.parse(text, str(path))

    @classmethod
    def parse(cls, text: bytes, path: str) -> "Manifest":
        """Check the content of a manifest file; errors call it `path`."""
        try:
            record = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ShardError(f"{path}: not a manifest ({error})") from None
        if not isinstance(record, dict) or record.get("schema") != SCHEMA:
            schema = record.get("schema") if isinstance(record, dict) else None
            raise ShardError(f"{path}: schema {schema!r}; this version reads schema {SCHEMA}: build the shards again")
        try:
            sources = [str(source) for source in record["sources"]]
            manifest = cls(tuple(_shard(shard, sources) for shard in record["shards"]))
            if not manifest.shards:
                raise ValueError("it names no shard")
            manifest._check_names()
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise ShardError(f"{path}: damaged manifest ({error})") from None
        if record.get("fingerprint") != manifest.fingerprint or record.get("samples") != len(manifest):
            raise ShardError(
                f"{path}: its fingerprint does not match its contents; it was changed after it was written"
            )
        return manifest

    def verify(self, folder: str | Path, level: Verify = "size") -> None:
        """Compare the shards with the manifest.

        Args:
            folder: where they lie.
            level: `size` reads no data, `full` hashes every byte, `once` does so unless these files were found sound
                before and have not been touched since, `off` trusts them.

        Raises:
            ShardError: a shard is missing, truncated or changed, or the level is unknown.
        """
        if level not in get_args(Verify):
            raise ShardError(f"verify {level!r}: must be one of {', '.join(get_args(Verify))}")
        if level == "off":
            return
        paths = [Path(folder) / shard.file for shard in self.shards]
        for shard, path in zip(self.shards, paths):
            if not path.is_file():
                raise ShardError(f"{path}: the shard is missing; restore it or build the shards again")
            if path.stat().st_size != shard.bytes:
                raise ShardError(
                    f"{path}: {path.stat().st_size:,} bytes, the manifest says {shard.bytes:,}; the shard is truncated "
                    "or was replaced (`cropl shards verify` says more)"
                )
        names = [shard.file for shard in self.shards]
        if level == "full" or (level == "once" and not is_stamped(folder, self.fingerprint, names)):
            with ThreadPoolExecutor() as pool:  # hashing leaves the interpreter free
                for shard, path, digest in zip(self.shards, paths, pool.map(sha256_of, paths)):
                    if digest != shard.sha256:
                        raise ShardError(
                            f"{path}: its SHA-256 differs from the manifest's; the shard is damaged "
                            "(`cropl shards verify` says more)"
                        )
            put_stamp(folder, self.fingerprint, names)

    def _check_names(self) -> None:
        files = [shard.file for shard in self.shards]
        keys = [entry.key for shard in self.shards for entry in shard.entries]
        for names, what in ((files, "shard"), (keys, "sample key")):
            if len(set(names)) < len(names):
                twice = next(name for name, count in Counter(names).items() if count > 1)
                raise ValueError(f"{what} {twice!r} is there twice")

    def _body(self) -> dict[str, Any]:
        sources = sorted({entry.source for shard in self.shards for entry in shard.entries})
        number = {source: i for i, source in enumerate(sources)}
        return {
            "sources": sources,
            "shards": [
                {"file": shard.file, "bytes": shard.bytes, "sha256": shard.sha256, "samples": len(shard.entries)}
                | {"index": [[entry.key, number[entry.source], *entry[2:]] for entry in shard.entries]}
                for shard in self.shards
            ],
        }


def _shard(record: Mapping[str, Any], sources: Sequence[str]) -> Shard:
    file = record["file"]
    if not isinstance(file, str) or not _FILE.fullmatch(file):
        raise ValueError(f"shard name {file!r}")  # a path could lead out of the folder
    if type(record["bytes"]) is not int or not isinstance(record["sha256"], str):
        raise ValueError(f"{file}: size {record['bytes']!r}, SHA-256 {record['sha256']!r}")
    rows = record["index"]
    if not rows or not all(type(row[1]) is int and 0 <= row[1] < len(sources) for row in rows):
        raise ValueError(f"{file}: no samples, or an unknown source")
    entries = tuple(Entry(row[0], sources[row[1]], *row[2:]) for row in rows)
    for entry in entries:
        if not isinstance(entry.key, str) or not KEY.fullmatch(entry.key):
            raise ValueError(f"{file}: bad sample key {entry.key!r}")
        if not all(type(number) is int and 0 <= number < 1 << 60 for number in entry[3:]):
            raise ValueError(f"{file}: bad index entry {entry.key!r}")
        if entry.extension not in ("", "jpeg", *EXTENSIONS.values()):
            raise ValueError(f"{file}: index entry {entry.key!r} names an image {entry.extension!r}")
        if any(bool(number) != bool(entry.extension) for number in (entry.image_bytes, entry.width, entry.height)):
            raise ValueError(f"{file}: index entry {entry.key!r} has half an image")
        if max(entry.image_bytes, entry.json_bytes) > MAX_MEMBER_BYTES:
            raise ValueError(f"{file}: index entry {entry.key!r} claims more than {MAX_MEMBER_BYTES} bytes")
        if max(entry.image_offset + entry.image_bytes, entry.json_offset + entry.json_bytes) > record["bytes"]:
            raise ValueError(f"{file}: index entry {entry.key!r} lies beyond the end of the shard")
    if len(entries) != record["samples"]:
        raise ValueError(f"{file}: {len(entries)} index entries for {record['samples']} samples")
    return Shard(file, record["bytes"], record["sha256"], entries)


def joint_fingerprint(manifests: Sequence[Manifest]) -> str:
    """Identifies several data sets together: one keeps its own fingerprint."""
    prints = [manifest.fingerprint for manifest in manifests]
    return prints[0] if len(prints) == 1 else hashlib.sha256("".join(prints).encode()).hexdigest()
