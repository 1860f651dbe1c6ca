"""Writing shards: plain WebDataset tars, refused where a WebDataset reader would mix something up, complete or absent.

A shard is written under another name, flushed to disk, read back and renamed, so that a file that has a shard's name is
a whole shard. The manifest, written last, makes a folder of shards a data set.
"""

import io
import json
import os
from pathlib import Path
from types import TracebackType

from PIL import Image
from webdataset import TarWriter

from cropl.data.files import sha256_of, sync_folder
from cropl.data.images import EXTENSIONS, image_format, load_image
from cropl.data.manifest import KEY, NAME, Entry, Manifest, Shard, ShardError
from cropl.data.sample import Sample
from cropl.data.tarball import index_shard


class ShardFile:
    """One shard that is being written.

    Images given as bytes or files are copied as they are; PIL images are stored as PNG, without loss.

    Args:
        path: the shard to be; until `finish` it lies beside this under another name.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.part = path, path.with_name(f".{path.name}.part")
        self._facts: dict[str, tuple[str, tuple[int, int, int, int, int]]] = {}
        self._file = open(self.part, "wb")  # noqa: SIM115  stays open across calls
        self._tar = TarWriter(self._file, encoder=False, mtime=0, user="", group="")

    def __len__(self) -> int:
        """Samples so far."""
        return len(self._facts)

    @property
    def bytes(self) -> int:
        """Bytes so far."""
        return self._file.tell()

    def write(self, sample: Sample) -> None:
        """Append one sample.

        Raises:
            ShardError: its key is repeated or can not be a file name, or its image is of another size than recorded.
            ImageError: its image can not be used.
        """
        if not KEY.fullmatch(sample.key):
            raise ShardError(f"sample key {sample.key!r}: use 1 to 95 letters, digits, '_' and '-'")
        if sample.key in self._facts:
            raise ShardError(f"sample key {sample.key!r} was already written; keys must be unique")
        members = _image(sample)
        record = json.dumps(sample.to_json(), ensure_ascii=False, separators=(",", ":")).encode()
        self._tar.write({"__key__": sample.key, **members, "json": record})
        turns = [(sample.asked, *sample.answers[:1]), *sample.followups]
        characters = sum(len(text) for turn in turns for text in turn)
        counts = (characters, len(sample.boxes), len(sample.answers))
        self._facts[sample.key] = (sample.source, (sample.width, sample.height, *counts))

    def finish(self) -> Shard:
        """Make it a shard: durable, read back, and under its name."""
        self._tar.close()
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        # Read back: the index is what the file holds, not what it should hold.
        entries = []
        for key, *place in index_shard(self.part):
            source, facts = self._facts[key]
            entries.append(Entry._make((key, source, *place, *facts)))
        shard = Shard(self.path.name, self.part.stat().st_size, sha256_of(self.part), tuple(entries))
        os.replace(self.part, self.path)
        sync_folder(self.path.parent)
        return shard

    def discard(self) -> None:
        """Leave nothing behind."""
        self._tar.close()
        self._file.close()
        self.part.unlink(missing_ok=True)


class ShardWriter:
    """Writes samples into `folder/prefix-000000.tar`, ... and the manifest last, when the `with` block ends well.

    After an exception nothing is left that a reader would take for a data set.

    Args:
        folder: a new or empty folder.
        prefix: start of the shard names: letters, digits, `_` and `-`.
        samples_per_shard: a new shard begins after this many samples,
        bytes_per_shard: or when this size is passed.

    Raises:
        ShardError: the folder already holds shards; or as for `ShardFile.write`.
    """

    def __init__(
        self, folder: str | Path, prefix: str = "samples", samples_per_shard: int = 1000, bytes_per_shard: int = 1 << 28
    ) -> None:
        self.folder = Path(folder)
        if not KEY.fullmatch(prefix):
            raise ShardError(f"shard prefix {prefix!r}: use letters, digits, '_' and '-'")
        if samples_per_shard < 1 or bytes_per_shard < 1:
            raise ShardError("samples_per_shard and bytes_per_shard must be at least 1")
        self.folder.mkdir(parents=True, exist_ok=True)
        if (self.folder / NAME).exists() or any(self.folder.glob("*.tar")):
            raise ShardError(f"{self.folder}: already holds shards; choose another folder or remove them")
        self.prefix, self.samples_per_shard, self.bytes_per_shard = prefix, samples_per_shard, bytes_per_shard
        self.keys: set[str] = set()
        self.shards: list[Shard] = []
        self._current: ShardFile | None = None

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
        elif self._current is not None:
            self._current.discard()

    def write(self, sample: Sample) -> None:
        """Append one sample."""
        if sample.key in self.keys:
            raise ShardError(f"sample key {sample.key!r} was already written; keys must be unique")
        if self._current is None:
            self._current = ShardFile(self.folder / shard_name(self.prefix, len(self.shards)))
        self._current.write(sample)
        self.keys.add(sample.key)
        if len(self._current) >= self.samples_per_shard or self._current.bytes >= self.bytes_per_shard:
            self._finish_shard()

    def close(self) -> Manifest:
        """Finish the last shard and write the manifest."""
        if self._current is not None and len(self._current):
            self._finish_shard()
        elif self._current is not None:
            self._current.discard()
        if not self.shards:
            raise ShardError(f"{self.folder}: no sample was written")
        manifest = Manifest(tuple(self.shards))
        manifest.write(self.folder)
        return manifest

    def _finish_shard(self) -> None:
        assert self._current is not None
        self.shards.append(self._current.finish())
        self._current = None


def shard_name(prefix: str, number: int) -> str:
    """The file name of a shard."""
    return f"{prefix}-{number:06d}.tar"


def _image(sample: Sample) -> dict[str, bytes]:
    """The image as a member of the shard, nothing without one."""
    if sample.image is None:
        if (sample.width, sample.height) != (0, 0):
            raise ShardError(f"sample {sample.key!r}: it has no image, its record says {sample.width}x{sample.height}")
        return {}
    if isinstance(sample.image, Image.Image):
        buffer = io.BytesIO()
        plain = sample.image if sample.image.mode in ("L", "P", "RGB") else sample.image.convert("RGB")
        plain.save(buffer, "PNG")
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
    return {EXTENSIONS[image_format(data)]: data}
