"""Shards and manifests that agree with each other, whatever is in them."""

import hashlib
import json
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def member(name: str, data: bytes = b"{}", kind: bytes = tarfile.REGTYPE, size: int | None = None) -> bytes:
    """A member of a tar file, header and payload."""
    info = tarfile.TarInfo(name)
    info.type, info.size, info.linkname = kind, len(data) if size is None else size, "/etc/passwd"
    return info.tobuf(tarfile.GNU_FORMAT) + data + bytes(-len(data) % 512)


def seal(folder: Path, change: Callable[[dict[str, Any]], None] = lambda record: None) -> None:
    """Change the manifest, and make its sizes, hashes and fingerprint agree with the files again."""
    path = folder / "manifest.json"
    record = json.loads(path.read_text())
    for shard in record["shards"]:
        data = (folder / shard["file"]).read_bytes()
        shard |= {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    change(record)
    body = {"sources": record.get("sources"), "shards": record.get("shards")}
    print_of = hashlib.sha256(json.dumps(body, separators=(",", ":")).encode()).hexdigest()
    path.write_text(json.dumps({"fingerprint": print_of} | {k: v for k, v in record.items() if k != "fingerprint"}))
