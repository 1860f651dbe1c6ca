"""Checkpoints that are complete or absent: a folder that is renamed into place when all of it is on the disk.

Files are written into a hidden folder beside the target, and synchronised; a marker that lists them with sizes and
SHA-256 is written last; then the folder takes its name. What is hidden is unfinished, whoever was killed there.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import shutil
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import metadata

from cropl.parallel import METADATA

MARKER = "complete.json"
"""In a checkpoint's folder: ``number`` (order of saving), ``run`` (whose it is), of files ``bytes`` and ``sha256``."""
WHOLE = "checkpoint.ckpt"
"""In a checkpoint's folder: all of it, where one process writes it; as Lightning writes and reads it."""

_INDEX_NAMES = {
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    ("torch.distributed.checkpoint.filesystem", "_StorageInfo"),
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("pathlib", "PurePosixPath"),
}

Digest = dict[str, Any]


class HashedFile:
    """A file for ``torch.save`` that hashes what is written, and keeps its first error until it is closed.

    An error inside torch's writer is raised again while it tidies up, and what it then says is not what happened.
    """

    def __init__(self, path: Path):
        self.file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
        self.sha, self.bytes = hashlib.sha256(), 0
        self.error: OSError | None = None

    def write(self, block: Any) -> int:
        rest = view = memoryview(block).cast("B")
        self.bytes += len(view)
        try:
            while self.error is None and len(rest):
                rest = rest[os.write(self.file, rest) :]
        except OSError as error:
            self.error = error
        self.sha.update(view)
        return len(view)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> Digest:
        """Everything is on the disk when this returns."""
        try:
            if self.error is not None:
                raise self.error
            os.fsync(self.file)
        finally:
            os.close(self.file)
        return {"bytes": self.bytes, "sha256": self.sha.hexdigest()}


def begin(target: Path) -> Path:
    """A new hidden folder for what is going to be the checkpoint ``target``."""
    partial = hidden(target, "partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    return partial


def save_whole(checkpoint: dict[str, Any], partial: Path) -> dict[str, Digest]:
    """Write a checkpoint as one file, straight to the disk: nothing of it is in memory twice or in ``$TMPDIR``."""
    file = HashedFile(partial / WHOLE)
    try:
        torch.save(checkpoint, file)  # type: ignore[arg-type]  # only `write` is called
    finally:
        digest = file.close()
    return {WHOLE: digest}


def synced(partial: Path, share: slice = slice(None)) -> dict[str, Digest]:
    """Digests of a share of the files in a folder, which are on the disk when this returns."""
    found: dict[str, Digest] = {}
    for path in sorted(path for path in partial.iterdir() if path.name != MARKER)[share]:
        with open(path, "rb") as file:
            os.fsync(file.fileno())
        found[path.name] = digest_of(path)
    return found


def finish(partial: Path, target: Path, files: dict[str, Digest], run: str = "") -> None:
    """Write the marker and give the folder its name. What had the name before stays until then."""
    number = 1 + max((marker(folder).get("number", 0) for folder in complete(target.parent)), default=0)
    with open(partial / MARKER, "w", encoding="utf-8") as file:
        json.dump({"number": number, "run": run, "files": files}, file, indent=1)
        file.flush()
        os.fsync(file.fileno())
    sync_folder(partial)
    before = hidden(target, "replaced")
    if target.exists():
        _delete(before)
        os.replace(target, before)
    os.replace(partial, target)
    sync_folder(target.parent)
    _delete(before)


def remove(folder: Path) -> None:
    """Delete a checkpoint, which is not one any more from the start."""
    gone = hidden(folder, "deleted")
    _delete(gone)
    os.replace(folder, gone)
    _delete(gone)


def tidy(folder: Path) -> list[str]:
    """Delete what killed processes have left in a folder of checkpoints; the names of what was unfinished."""
    found = []
    for left in sorted(folder.glob(".*.replaced")):
        target = folder / left.name[1 : -len(".replaced")]
        if not target.exists():  # killed between two renames
            os.replace(left, target)
    for end in ("partial", "replaced", "deleted"):
        for left in sorted(folder.glob(f".*.{end}")):
            found += [left.name] if end == "partial" else []
            _delete(left)
    return found


def complete(folder: Path) -> list[Path]:
    """The checkpoints in a folder that have their marker and files of the right sizes, the last saved first."""
    sound = [path for path in _candidates(folder) if not damage(path, content=False)]
    return sorted(sound, key=lambda path: (marker(path)["number"], path.name), reverse=True)


def damaged(folder: Path) -> dict[Path, str]:
    """What else in a folder was a checkpoint, and what is wrong with it, as far as markers and sizes tell."""
    wrong = {path: damage(path, content=False) for path in _candidates(folder)}
    return {path: text for path, text in sorted(wrong.items()) if text}


def _candidates(folder: Path) -> list[Path]:
    found = [path for path in folder.iterdir() if not path.name.startswith(".")] if folder.is_dir() else []
    return [path for path in found if any((path / name).is_file() for name in (MARKER, WHOLE, METADATA))]


def marker(folder: Path) -> dict[str, Any]:
    """What the marker says; empty if there is none that can be read."""
    try:
        said = json.loads((folder / MARKER).read_text(encoding="utf-8"))
        return said if isinstance(said.get("number"), int) and isinstance(said.get("files"), dict) else {}
    except (OSError, ValueError, AttributeError):
        return {}


def seal(folder: Path) -> str:
    """What no other checkpoint has, of whatever name: the SHA-256 of the marker; empty if there is none to read."""
    return str(digest_of(folder / MARKER)["sha256"]) if marker(folder) else ""


def damage(folder: Path, content: bool = True, share: slice = slice(None)) -> str:
    """What is wrong with a checkpoint's folder; empty if nothing is.

    Args:
        folder: the checkpoint.
        content: hash the files, and not only compare their sizes.
        share: which of the files to look at.
    """
    said = marker(folder)
    if not said:
        return f"it has no {MARKER}: it was not written to its end"
    for name, digest in sorted(said["files"].items())[share]:
        path = folder / name
        if not path.is_file():
            return f"{name} is missing"
        if path.stat().st_size != digest["bytes"]:
            return f"{name} has {path.stat().st_size} bytes instead of {digest['bytes']}"
        if content and digest_of(path)["sha256"] != digest["sha256"]:
            return f"{name} is not what was written: its SHA-256 differs"
    return ""


def check_metadata(folder: Path) -> None:
    """Refuse a sharded checkpoint whose index, which torch unpickles, names anything but torch's own classes.

    Raises:
        ValueError: it does.
    """

    class Names(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:
            own = module == metadata.__name__ and isinstance(getattr(metadata, name, None), type)
            dtype = module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)
            if own or dtype or (module, name) in _INDEX_NAMES:
                return super().find_class(module, name)
            raise pickle.UnpicklingError(f"{module}.{name}")

    try:
        Names(io.BytesIO((folder / ".metadata").read_bytes())).load()
    except (pickle.UnpicklingError, AttributeError, EOFError, ImportError) as error:
        raise ValueError(f"{folder}/.metadata is no index of a checkpoint ({error}): it is not loaded") from None


def digest_of(path: Path) -> Digest:
    """Size and SHA-256 of a file."""
    with open(path, "rb") as file:
        sha = hashlib.sha256()
        while block := file.read(1 << 22):
            sha.update(block)
    return {"bytes": path.stat().st_size, "sha256": sha.hexdigest()}


def sync_folder(folder: Path) -> None:
    """Make renames in a folder durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def hidden(target: Path, end: str) -> Path:
    """Where a checkpoint is while it is not one."""
    return target.with_name(f".{target.name}.{end}")


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
