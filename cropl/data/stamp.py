"""Remembers which folders of shards were hashed and found sound, so that this is done once and not in every run.

A stamp is worth something as long as no shard changes its size or its time of modification. It lies in the user's
cache, since shards may lie on a disk that cannot be written to, and is derived data: delete it at will.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path


def cache_folder() -> Path:
    """Where cropl keeps derived data of a user: `$CROPL_CACHE`, or `~/.cache/cropl`."""
    return Path(os.environ.get("CROPL_CACHE") or Path.home() / ".cache" / "cropl").expanduser()


def is_stamped(folder: str | Path, fingerprint: str, files: Sequence[str]) -> bool:
    """Whether these files were sound, and have not been touched since."""
    try:
        return bool(json.loads(_path(folder).read_text()) == _state(folder, fingerprint, files))
    except (OSError, ValueError):
        return False


def put_stamp(folder: str | Path, fingerprint: str, files: Sequence[str]) -> None:
    """Remember that these files are sound. Where the cache cannot be written to, they are hashed again next time."""
    path = _path(folder)
    part = path.with_suffix(f".{os.getpid()}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        part.write_text(json.dumps(_state(folder, fingerprint, files)))
        os.replace(part, path)
    except OSError:
        with contextlib.suppress(OSError):
            part.unlink()


def _path(folder: str | Path) -> Path:
    name = hashlib.sha256(str(Path(folder).resolve()).encode()).hexdigest()
    return cache_folder() / "verified" / f"{name}.json"


def _state(folder: str | Path, fingerprint: str, files: Sequence[str]) -> list[object]:
    facts = ((name, os.stat(Path(folder) / name)) for name in files)
    return [fingerprint, [[name, fact.st_size, fact.st_mtime_ns] for name, fact in facts]]
