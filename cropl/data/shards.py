"""Shards: plain WebDataset tars, written strictly and read back at any place.

`ShardWriter` stores `key.jpg|png|webp` and `key.json` per sample with webdataset's own `TarWriter`, so any WebDataset
reader can use the folder; it refuses what such a reader would mix up (dotted or repeated keys). `ShardReader` reads one
sample by the manifest's index with `pread`: no tar parsing, nothing unpickled, no file extracted, no URL opened.
"""

import io
import json
import os
import re
import tarfile
from pathlib import Path
from types import TracebackType
from typing import IO, Any

from PIL import Image
from webdataset import TarWriter

from cropl.data.images import EXTENSIONS, image_format, load_image
from cropl.data.manifest import NAME, Entry, Manifest, Shard, ShardError, Verify, sha256_of, sync_folder
from cropl.data.sample import Sample

MAX_MEMBER_BYTES = 1 << 28
_KEY = re.compile(r"[A-Za-z0-9_-]{1,100}")
_TAR_END = 1024  # two zero blocks end an archive


class ShardWriter:
    """Writes samples into `folder/prefix-000000.tar`, ... and the manifest last, when the `with` block ends well.

    Images given as bytes or files are copied as they are; PIL images are stored as PNG, without loss. After an
    exception nothing is left that a reader would take for a data set.

    Args:
        folder: a new or empty folder.
        prefix: start of the shard names: letters, digits, `_` and `-`.
        samples_per_shard: a new shard begins after this many samples,
        bytes_per_shard: or when this size is passed.

    Raises:
        ShardError: the folder already holds shards, a key is repeated or can not be a file name, or a sample's image
            is unreadable or of another size than recorded.
    """

    def __init__(
        self, folder: str | Path, prefix: str = "samples", samples_per_shard: int = 1000, bytes_per_shard: int = 1 << 28
    ) -> None:
        self.folder = Path(folder)
        if not _KEY.fullmatch(prefix):
            raise ShardError(f"shard prefix {prefix!r}: use letters, digits, '_' and '-'")
        if samples_per_shard < 1 or bytes_per_shard < 1:
            raise ShardError("samples_per_shard and bytes_per_shard must be at least 1")
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / NAME).exists() or any(self.folder.glob("*.tar")):
            raise ShardError(f"{self.folder}: already holds shards; choose another folder or remove them")
        self.prefix, self.samples_per_shard, self.bytes_per_shard = prefix, samples_per_shard, bytes_per_shard
        self.keys: set[str] = set()
        self.shards: list[Shard] = []
        self._tar: TarWriter | None = None
        self._file: IO[bytes] | None = None
        self._facts: dict[str, tuple[int, int, int]] = {}

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif self._tar is not None and self._file is not None:
            self._tar.close()
            self._file.close()
            self._part.unlink(missing_ok=True)

    def write(self, sample: Sample) -> None:
        """Append one sample."""
        if not _KEY.fullmatch(sample.key):
            # A dot would end the key for a WebDataset reader, a slash make it a path.
            raise ShardError(f"sample key {sample.key!r}: use 1 to 100 letters, digits, '_' and '-'")
        if sample.key in self.keys:
            raise ShardError(f"sample key {sample.key!r} was already written; keys must be unique")
        extension, data = _encoded(sample)
        if self._tar is None:
            self._file = open(self._part, "wb")  # noqa: SIM115  stays open across calls
            self._tar = TarWriter(self._file, encoder=False, mtime=0, user="", group="")
        record = json.dumps(sample.to_json(), ensure_ascii=False, separators=(",", ":")).encode()
        self._tar.write({"__key__": sample.key, extension: data, "json": record})
        self.keys.add(sample.key)
        self._facts[sample.key] = (sample.width, sample.height, len(sample.question) + len(sample.answers[0]))
        assert self._file is not None
        if len(self._facts) >= self.samples_per_shard or self._file.tell() >= self.bytes_per_shard:
            self._finish_shard()

    def close(self) -> Manifest:
        """Finish the last shard and write the manifest."""
        if self._tar is not None:
            self._finish_shard()
        if not self.shards:
            raise ShardError(f"{self.folder}: no sample was written")
        manifest = Manifest(tuple(self.shards))
        manifest.write(self.folder)
        return manifest

    @property
    def _part(self) -> Path:
        return self.folder / f".{self.prefix}-{len(self.shards):06d}.tar.part"

    def _finish_shard(self) -> None:
        assert self._tar is not None and self._file is not None
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        path = self.folder / f"{self.prefix}-{len(self.shards):06d}.tar"
        part = self._part
        # Read back: the index is what the file holds, not what it should hold.
        entries = tuple(Entry(*row, *self._facts[row[0]]) for row in index_shard(part))
        shard = Shard(path.name, part.stat().st_size, sha256_of(part), entries)
        os.replace(part, path)
        sync_folder(self.folder)
        self.shards.append(shard)
        self._tar, self._file, self._facts = None, None, {}


def _encoded(sample: Sample) -> tuple[str, bytes]:
    if isinstance(sample.image, Image.Image):
        buffer = io.BytesIO()
        sample.image.convert("RGB").save(buffer, "PNG")
        data, size = buffer.getvalue(), sample.image.size
    else:
        name = f"of sample {sample.key!r}" if isinstance(sample.image, bytes) else repr(str(sample.image))
        size = load_image(sample.image, name).size
        data = sample.image if isinstance(sample.image, bytes) else Path(sample.image).read_bytes()
    if size != (sample.width, sample.height):
        raise ShardError(
            f"sample {sample.key!r}: its image is {size[0]}x{size[1]} as displayed, its record says "
            f"{sample.width}x{sample.height}; boxes would fall on the wrong place"
        )
    return EXTENSIONS[image_format(data)], data


def index_shard(path: str | Path) -> list[tuple[str, str, int, int, int, int]]:
    """Read a shard's headers: `(key, image extension, image offset, image bytes, json offset, json bytes)` per sample.

    Raises:
        ShardError: no plain tar; truncated or damaged (webdataset itself ends such a shard silently); a member that is
            no regular file or of a type that is never decoded; or a sample that is not exactly one image and one json.
    """
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    end, size = 0, os.path.getsize(path)
    try:
        with tarfile.open(path, "r:") as tar:
            for member in tar:
                key, _, extension = member.name.partition(".")
                if not member.isreg() or extension not in {*EXTENSIONS.values(), "jpeg", "json"}:
                    raise ShardError(f"{path}: member {member.name!r}: only images and json are read from a shard")
                if not _KEY.fullmatch(key) or extension in samples.get(key, {}):
                    raise ShardError(f"{path}: member {member.name!r}: a bad key, or there twice")
                if member.size > MAX_MEMBER_BYTES:
                    raise ShardError(f"{path}: member {member.name!r} claims {member.size} bytes")
                samples.setdefault(key, {})[extension] = (member.offset_data, member.size)
                end = member.offset_data + -(-member.size // 512) * 512
    except (tarfile.TarError, EOFError) as error:
        raise ShardError(f"{path}: not a plain tar file, or damaged ({error})") from None
    with open(path, "rb") as file:
        file.seek(end)
        rest = file.read(_TAR_END)
    if end > size or len(rest) < _TAR_END or any(rest):
        raise ShardError(f"{path}: the archive does not end after {len(samples)} samples; it is truncated or damaged")
    rows = []
    for key, members in samples.items():
        images = [extension for extension in members if extension != "json"]
        if len(images) != 1 or "json" not in members:
            raise ShardError(f"{path}: sample {key!r} has {sorted(members)}, needs one image and one json")
        rows.append((key, images[0], *members[images[0]], *members["json"]))
    return rows


class ShardReader:
    """Random access to the samples of a folder of shards, numbered 0 to `len - 1` in manifest order.

    Safe to hand to worker processes of any start method: files are opened on first use, per process.

    Args:
        folder: a local folder with `manifest.json`.
        verify: how the shards are compared with the manifest now: `size` (default), `full` or `off`.

    Raises:
        ShardError: as for `Manifest.read` and `Manifest.verify`; also for anything that looks like a URL or a command.
    """

    def __init__(self, folder: str | Path, verify: Verify = "size") -> None:
        if re.match(r"[A-Za-z][A-Za-z0-9+.-]*:", str(folder)) and not Path(folder).is_dir():
            raise ShardError(f"{folder}: shards are read from a local folder, not from a URL or a command")
        self.folder = Path(folder)
        self.manifest = Manifest.read(self.folder)
        self.manifest.verify(self.folder, verify)
        self._where = [(s, e) for s, shard in enumerate(self.manifest.shards) for e in range(len(shard.entries))]
        self._files: dict[int, int] = {}

    def __len__(self) -> int:
        return len(self._where)

    def __getstate__(self) -> dict[str, Any]:
        return self.__dict__ | {"_files": {}}

    def record(self, index: int) -> dict[str, Any]:
        """The raw sample as WebDataset names it: `__key__`, `__url__`, the image's extension, and `json`, as bytes."""
        s, e = self._where[index]
        shard = self.manifest.shards[s]
        entry = shard.entries[e]
        if s not in self._files:
            self._files[s] = os.open(self.folder / shard.file, os.O_RDONLY)
        image = os.pread(self._files[s], entry.image_bytes, entry.image_offset)
        text = os.pread(self._files[s], entry.json_bytes, entry.json_offset)
        if len(image) != entry.image_bytes or len(text) != entry.json_bytes:
            raise ShardError(f"{self.folder / shard.file}: sample {entry.key!r} is cut off; the shard is truncated")
        return {"__key__": entry.key, "__url__": str(self.folder / shard.file), entry.extension: image, "json": text}

    def __getitem__(self, index: int) -> Sample:
        """The decoded sample, its image as displayed.

        Raises:
            ShardError: the record or the image is damaged; the message names shard and sample.
        """
        return self._sample(index, decode=True)

    def _sample(self, index: int, decode: bool) -> Sample:
        raw = self.record(index)
        s, e = self._where[index]
        entry = self.manifest.shards[s].entries[e]
        where = f"{raw['__url__']}: sample {entry.key!r}"
        try:
            image = raw[entry.extension]
            sample = Sample.from_json(json.loads(raw["json"]), load_image(image, "in the shard") if decode else image)
        except ValueError as error:
            raise ShardError(f"{where}: {error}") from None
        size = sample.image.size if isinstance(sample.image, Image.Image) else (entry.width, entry.height)
        if sample.key != entry.key or size != (sample.width, sample.height):
            raise ShardError(f"{where}: record and image do not belong together; the shard is damaged")
        return sample


def read_samples(folder: str | Path, count: int | None = None) -> list[Sample]:
    """The first `count` samples of a folder of shards (all by default), images as encoded bytes: a study's `data`.

    Raises:
        ShardError: as for `ShardReader`.
    """
    reader = ShardReader(folder)
    return [reader._sample(index, decode=False) for index in range(min(len(reader), count or len(reader)))]
