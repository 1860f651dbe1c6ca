"""The manifest beside a folder of shards: what is in them, byte for byte.

Written last and atomically, so a folder that has one is complete. It records each shard's size and SHA-256 and where
every sample lies in it, which makes damage visible before training and any order of samples cheap to read. The
fingerprint identifies the data set: a run that continues on other data is refused by it.
"""

import hashlib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

SCHEMA = 1
NAME = "manifest.json"

_FILE = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*\.tar")

Verify = Literal["off", "size", "full"]


class ShardError(ValueError):
    """Shards or a manifest that can not be used; the message names the file and the remedy."""


class Entry(NamedTuple):
    """Where one sample lies in its shard, and how long it is.

    `width` and `height` are the displayed image's, `characters` counts question and first answer: enough to compose
    batches of like length without reading a shard.
    """

    key: str
    extension: str
    image_offset: int
    image_bytes: int
    json_offset: int
    json_bytes: int
    width: int
    height: int
    characters: int


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
        body = self._body()
        record = {
            "schema": SCHEMA,
            "fingerprint": self.fingerprint,
            "samples": len(self),
            "entry": Entry._fields,
        } | body
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
            record = json.loads(path.read_bytes())
        except FileNotFoundError:
            raise ShardError(f"{path}: no manifest; the shards are incomplete, or were not written by cropl") from None
        except (OSError, ValueError) as error:
            raise ShardError(f"{path}: not a manifest ({error})") from None
        if not isinstance(record, dict) or record.get("schema") != SCHEMA:
            schema = record.get("schema") if isinstance(record, dict) else None
            raise ShardError(f"{path}: schema {schema!r}; this version reads schema {SCHEMA}")
        try:
            manifest = cls(tuple(_shard(shard) for shard in record["shards"]))
        except (KeyError, TypeError, ValueError) as error:
            raise ShardError(f"{path}: damaged manifest ({error})") from None
        if record.get("fingerprint") != manifest.fingerprint or record.get("samples") != len(manifest):
            raise ShardError(
                f"{path}: its fingerprint does not match its contents; it was changed after it was written"
            )
        return manifest

    def verify(self, folder: str | Path, level: Verify = "size") -> None:
        """Compare the shards with the manifest: `size` reads no data, `full` hashes every byte.

        Raises:
            ShardError: a shard is missing, truncated or changed, or the level is unknown.
        """
        if level not in ("off", "size", "full"):
            raise ShardError(f"verify {level!r}: must be 'off', 'size' or 'full'")
        for shard in self.shards if level != "off" else ():
            path = Path(folder) / shard.file
            if not path.is_file():
                raise ShardError(f"{path}: the shard is missing; restore it or build the shards again")
            if path.stat().st_size != shard.bytes:
                raise ShardError(
                    f"{path}: {path.stat().st_size} bytes, the manifest says {shard.bytes}; "
                    "the shard is truncated or was replaced"
                )
            if level == "full" and sha256_of(path) != shard.sha256:
                raise ShardError(f"{path}: its SHA-256 differs from the manifest's; the shard is damaged")

    def _body(self) -> dict[str, Any]:
        return {
            "shards": [
                {"file": shard.file, "bytes": shard.bytes, "sha256": shard.sha256, "samples": len(shard.entries)}
                | {"index": [list(entry) for entry in shard.entries]}
                for shard in self.shards
            ]
        }


def _shard(record: Mapping[str, Any]) -> Shard:
    file = record["file"]
    if not isinstance(file, str) or not _FILE.fullmatch(file):
        raise ValueError(f"shard name {file!r}")  # a path could lead out of the folder
    entries = tuple(Entry(*row) for row in record["index"])
    for entry in entries:
        if not all(type(number) is int and number >= 0 for number in entry[2:]):
            raise ValueError(f"{file}: bad index entry {entry.key!r}")
        if max(entry.image_offset + entry.image_bytes, entry.json_offset + entry.json_bytes) > record["bytes"]:
            raise ValueError(f"{file}: index entry {entry.key!r} lies beyond the end of the shard")
    if len(entries) != record["samples"]:
        raise ValueError(f"{file}: {len(entries)} index entries for {record['samples']} samples")
    return Shard(file, record["bytes"], record["sha256"], entries)


def sha256_of(path: str | Path) -> str:
    """SHA-256 of a file, in hexadecimal."""
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        while block := file.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def sync_folder(folder: str | Path) -> None:
    """Make a rename in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
