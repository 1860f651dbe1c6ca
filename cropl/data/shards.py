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
from cropl.data.manifest import Manifest, Shard, ShardError, Verify, joint_fingerprint
from cropl.data.sample import Sample

# N samples of all folders, K shards of all folders


class ShardFolder(Protocol):
    """Where the shards of one manifest lie."""

    def path(self, shard: Shard) -> Path:
        """A local file that holds the shard; called in any process."""


@dataclass(frozen=True)
class LocalFolder:
    """Shards on a local or mounted disk."""

    folder: Path

    def path(self, shard: Shard) -> Path:
        return self.folder / shard.file


class ShardReader:
    """Random access to the samples of folders of shards, numbered 0 to `len - 1` in manifest order, folder by folder.

    Safe to hand to worker processes of any start method: files are opened on first use, per process.

    Args:
        folders: a local folder with `manifest.json`, or several.
        verify: how the shards are compared with the manifest now: `size` (default), `full` or `off`.

    Attributes:
        fingerprint: identifies the data, all folders together.
        sources: names of the sources of all folders.
        source_N: of each sample, the number of its source in `sources`.
        width_N, height_N, characters_N, boxes_N: of each sample, see `cropl.data.manifest.Entry`.
        size_K: samples of each shard.

    Raises:
        ShardError: as for `Manifest.read` and `Manifest.verify`; a key that two folders share; also for anything that
            looks like a URL or a command.
    """

    def __init__(self, folders: str | Path | Sequence[str | Path], verify: Verify = "size") -> None:
        names = [folders] if isinstance(folders, str | Path) else list(folders)
        if not names:
            raise ShardError("no folder of shards is given")
        opened = [open_folder(name, verify) for name in names]
        shards = [(folder, shard) for folder, manifest in opened for shard in manifest.shards]
        entries = [entry for _, shard in shards for entry in shard.entries]
        self.fingerprint = joint_fingerprint([manifest for _, manifest in opened])
        self._key_N = np.array([entry.key.encode() for entry in entries])
        if len(np.unique(self._key_N)) < len(entries):
            raise ShardError(f"{' and '.join(map(str, names))} share sample keys; build them with different prefixes")
        self.sources = sorted({entry.source for entry in entries})
        number = {source: i for i, source in enumerate(self.sources)}
        self.source_N = np.array([number[entry.source] for entry in entries], dtype=np.int64)
        self._extension_N = np.array([entry.extension.encode() for entry in entries])
        facts = np.array([entry[3:] for entry in entries], dtype=np.int64)
        self._span_N4, (self.width_N, self.height_N, self.characters_N, self.boxes_N) = facts[:, :4], facts[:, 4:].T
        self.size_K = np.array([len(shard.entries) for _, shard in shards])
        self._end_K = self.size_K.cumsum()
        self._shards = [(folder, replace(shard, entries=())) for folder, shard in shards]
        self._files: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self.source_N)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}

    def key(self, index: int) -> str:
        """The key of a sample."""
        return bytes(self._key_N[index]).decode()

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
            ShardError: the record or the image is damaged; the message names shard and sample.
        """
        return self._sample(index, decode=True)

    def _opened(self, shard: int) -> tuple[int, Path]:
        folder, entry = self._shards[shard]
        path = folder.path(entry)
        if shard not in self._files:
            self._files[shard] = os.open(path, os.O_RDONLY)
        return self._files[shard], path

    def _sample(self, index: int, decode: bool) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        raw = self.record(index)
        key, where = raw["__key__"], f"{raw['__url__']}: sample {raw['__key__']!r}"
        image: Any = next((value for name, value in raw.items() if name in (*EXTENSIONS.values(), "jpeg")), None)
        try:
            if image is not None and decode:
                image = load_image(image, "in the shard")
            sample = Sample.from_json(json.loads(raw["json"]), image)
        except ValueError as error:
            raise ShardError(f"{where}: {error}") from None
        listed = (int(self.width_N[index]), int(self.height_N[index]))
        shown = image.size if isinstance(image, Image.Image) else listed
        if sample.key != key or not shown == listed == (sample.width, sample.height):
            raise ShardError(f"{where}: record and image do not belong together; the shard is damaged")
        return sample


def open_folder(name: str | Path, verify: Verify = "size") -> tuple[ShardFolder, Manifest]:
    """The folder of shards at a path, and its manifest."""
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", str(name)) and not Path(name).is_dir():
        raise ShardError(f"{name}: shards are read from a local folder, not from a URL or a command")
    manifest = Manifest.read(name)
    manifest.verify(name, verify)
    return LocalFolder(Path(name)), manifest


def read_samples(folder: str | Path, count: int | None = None) -> list[Sample]:
    """The first `count` samples of a folder of shards (all by default), images as encoded bytes: a study's `data`.

    Raises:
        ShardError: as for `ShardReader`.
    """
    reader = ShardReader(folder)
    return [reader._sample(index, decode=False) for index in range(min(len(reader), count or len(reader)))]
