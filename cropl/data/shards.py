"""Reading shards at any place: by the manifest's index, with `pread`.

No tar is parsed, nothing is unpickled, no file is extracted and no command is run. `ShardReader` numbers the samples of
one or several folders in manifest order; what is asked of them as a whole (lengths, sources) lies in arrays, so that a
reader of a million samples travels to its worker processes in no time.
"""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image

from cropl.data.images import EXTENSIONS, load_image
from cropl.data.manifest import Manifest, SampleError, Shard, ShardError, Verify, joint_fingerprint
from cropl.data.remote import open_remote, without_secrets
from cropl.data.sample import Sample

# N samples of all folders, K shards of all folders, F folders

MAX_OPEN = 64
"""Shards that a process holds open at a time: systems allow some thousand files, and a set may have more shards."""


class ShardFolder(Protocol):
    """Where the shards of one manifest lie."""

    def path(self, shard: Shard) -> Path:
        """A local file that holds the shard; called in any process."""


@dataclass(frozen=True)
class LocalFolder:
    """Shards on a local or mounted disk."""

    folder: Path

    def __str__(self) -> str:
        return str(self.folder)

    def path(self, shard: Shard) -> Path:
        return self.folder / shard.file


class ShardReader:
    """Random access to the samples of folders of shards, numbered 0 to `len - 1` in manifest order, folder by folder.

    Safe to hand to worker processes of any start method: files are opened on first use, per process.

    Args:
        folders: a local folder with `manifest.json` or an `https` address of one, or several.
        verify: how local shards are compared with the manifest now, see `Manifest.verify`. Those at an address are
            checked at first use, in each process, see `cropl.data.remote.RemoteFolder`.
        cache: where fetched shards are kept, see `cropl.data.remote.open_remote`.
        decode_side: large JPEGs are decoded at a half, a quarter or an eighth as long as both sides keep this many
            pixels, which is several times as fast; a sample's `picture` is then smaller than its `width` x `height`.
            None decodes them whole.

    Attributes:
        fingerprint: identifies the data, all folders together.
        sources: names of the sources of all folders.
        source_N: of each sample, the number of its source in `sources`.
        width_N, height_N, characters_N, boxes_N, answers_N: of each sample, see `cropl.data.manifest.Entry`.
        size_K, size_F: samples of each shard, and of each folder.

    Raises:
        ShardError: as for `Manifest.read` and `Manifest.verify`; a key that two folders share; also for
            addresses that are not `https`, and for commands.
    """

    def __init__(
        self,
        folders: str | Path | Sequence[str | Path],
        verify: Verify = "size",
        cache: str | Path | None = None,
        decode_side: int | None = None,
    ) -> None:
        names = [folders] if isinstance(folders, str | Path) else list(folders)
        if not names:
            raise ShardError("no folder of shards is given")
        opened = [open_folder(name, verify, cache) for name in names]
        shards = [(folder, shard) for folder, manifest in opened for shard in manifest.shards]
        entries = [entry for _, shard in shards for entry in shard.entries]
        self.fingerprint = joint_fingerprint([manifest for _, manifest in opened])
        self._key_N = np.array([entry.key.encode() for entry in entries])
        if len(np.unique(self._key_N)) < len(entries):
            places = " and ".join(str(folder) for folder, _ in opened)
            raise ShardError(f"{places} share sample keys; build them with different prefixes")
        self.sources = sorted({entry.source for entry in entries})
        number = {source: i for i, source in enumerate(self.sources)}
        self.source_N = np.array([number[entry.source] for entry in entries], dtype=np.int64)
        self._extension_N = np.array([entry.extension.encode() for entry in entries])
        facts = np.array([entry[3:] for entry in entries], dtype=np.int64)
        self._span_N4 = facts[:, :4]
        self.width_N, self.height_N, self.characters_N, self.boxes_N, self.answers_N = facts[:, 4:].T
        self.size_K = np.array([len(shard.entries) for _, shard in shards])
        self.size_F = np.array([len(manifest) for _, manifest in opened])
        self._end_K = self.size_K.cumsum()
        self._shards = [(folder, replace(shard, entries=())) for folder, shard in shards]
        self.decode_side = decode_side
        self._files: dict[int, tuple[int, Path]] = {}

    def __len__(self) -> int:
        return len(self.source_N)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}

    def key(self, index: int) -> str:
        """The key of a sample."""
        return bytes(self._key_N[index]).decode()

    def told(self, which_N: np.ndarray) -> str:
        """Sources of the samples that a mask (N,) marks, and how many, for a message; "" if it marks none."""
        counts = np.bincount(self.source_N[which_N], minlength=len(self.sources)).tolist()
        return ", ".join(f"{source} ({count:,})" for source, count in zip(self.sources, counts) if count)

    def record(self, index: int) -> dict[str, Any]:
        """The raw sample as WebDataset names it: `__key__`, `__url__`, the image's extension, and `json`, as bytes."""
        shard = int(np.searchsorted(self._end_K, index, side="right"))
        file, path = self._opened(shard)
        image_offset, image_bytes, json_offset, json_bytes = (int(number) for number in self._span_N4[index])
        image = os.pread(file, image_bytes, image_offset)
        text = os.pread(file, json_bytes, json_offset)
        if len(image) != image_bytes or len(text) != json_bytes:
            raise ShardError(f"{path}: sample {self.key(index)!r} is cut off; the shard is truncated")
        extension = bytes(self._extension_N[index]).decode()
        names = {"__key__": self.key(index), "__url__": str(path), "json": text}
        return names | ({extension: image} if extension else {})

    def __getitem__(self, index: int) -> Sample:
        """The decoded sample, its image as displayed.

        Raises:
            SampleError: the record or the image is damaged; the message names shard and sample.
            ShardError: the shard cannot be read.
        """
        return self._sample(index, decode=True)

    def encoded(self, index: int) -> Sample:
        """The sample with its image as encoded bytes. Raises as `reader[index]` does, but looks at no pixel."""
        return self._sample(index, decode=False)

    def _opened(self, shard: int) -> tuple[int, Path]:
        if shard not in self._files:
            if len(self._files) >= MAX_OPEN:  # the one that was opened first is the least likely to be read again
                os.close(self._files.pop(next(iter(self._files)))[0])
            folder, entry = self._shards[shard]
            path = folder.path(entry)
            self._files[shard] = os.open(path, os.O_RDONLY), path
        return self._files[shard]

    def _sample(self, index: int, decode: bool) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        raw = self.record(index)
        key, where = raw["__key__"], f"{raw['__url__']}: sample {raw['__key__']!r}"
        encoded = next((value for name, value in raw.items() if name in (*EXTENSIONS.values(), "jpeg")), None)
        image: Any = encoded
        try:
            if encoded is not None and decode:
                side = self.decode_side
                image = load_image(encoded, "in the shard", at_least=(side, side) if side else None)
            sample = Sample.from_json(json.loads(raw["json"]), image)
        except (ValueError, ArithmeticError, RecursionError) as error:  # a hostile record: endless numbers, or nesting
            raise SampleError(f"{where}: {error}") from None
        listed = (int(self.width_N[index]), int(self.height_N[index]))
        whole = isinstance(image, Image.Image) and self.decode_side is None
        if sample.key != key or not (image.size if whole else listed) == listed == (sample.width, sample.height):
            raise SampleError(f"{where}: record and image do not belong together; the shard is damaged")
        sample.encoded = encoded
        return sample


def open_folder(
    name: str | Path, verify: Verify = "size", cache: str | Path | None = None
) -> tuple[ShardFolder, Manifest]:
    """The folder of shards at a path or an `https` address, and its manifest; `cache` keeps what is fetched.

    Raises:
        ShardError: as for `Manifest.read` and `Manifest.verify`, or `open_remote`; any other address, or a command.
    """
    address = str(name)
    if address.lower().startswith("https://"):
        return open_remote(address, verify, cache)
    scheme = re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", address)
    if scheme is None or Path(name).is_dir():
        manifest = Manifest.read(name)
        manifest.verify(name, verify)
        return LocalFolder(Path(name)), manifest
    kind = scheme[0].lower()
    if kind == "pipe:":
        raise ShardError("pipe: commands are never run; give a local folder of shards or an https address")
    remedy = {
        "http:": "use https, which tells whether the shards arrive as they were sent",
        "https:": "write https://host/folder/",
        "file:": "give the path alone",
    }.get(kind, "mount or download it first")
    raise ShardError(
        f"{without_secrets(address)}: no such local folder, and {kind} is no address to read shards from; {remedy}"
    )


def read_samples(folder: str | Path, count: int | None = None) -> list[Sample]:
    """The first `count` samples of a folder of shards (all by default), images as encoded bytes: a study's `data`.

    Raises:
        ShardError: as for `ShardReader`.
    """
    reader = ShardReader(folder)
    return [reader.encoded(index) for index in range(min(len(reader), count or len(reader)))]
