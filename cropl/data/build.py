"""Building a set of shards in parallel, so that it can be killed at any time and continued.

The selection is cut into chunks, and each chunk becomes one shard, in a process of its own. A finished shard leaves a
record in `.build`; whoever starts the same build again does only what has no record. The manifest is written last.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cropl.data.chunks import Chunk, Task, make_chunks
from cropl.data.labelling import Labelling
from cropl.data.manifest import NAME, Manifest, ShardError
from cropl.data.readers.base import Rejected
from cropl.data.selection import Candidate, Progress, Selection
from cropl.data.writer import shard_name
from cropl.errors import RunError

RECORDS = ".build"
REPORT, REJECTED = "build.json", "rejected.jsonl"
BUILD_VERSION = 1


def build(
    folder: Path,
    prefix: str,
    selection: Selection,
    labelling: Labelling,
    samples_per_shard: int = 500,
    max_bad: float = 0.01,
    workers: int = 0,
    about: dict[str, Any] | None = None,
    progress: Progress = lambda done: None,
) -> Manifest:
    """Write the selection as shards into `folder`, or continue to.

    Args:
        folder: a new folder, or one in which the same build was interrupted. If it is complete, nothing is done.
        prefix: start of the shard names.
        selection: what is written.
        labelling: how samples are made.
        samples_per_shard: candidates of one shard.
        max_bad: share of all rows that may be unusable.
        workers: processes; 0 works in this one.
        about: further facts for the report `build.json`.
        progress: told how many more candidates are done.

    Raises:
        ValueError: the folder holds something else, or another build is writing into it.
        RunError: too many rows cannot be used; or a process died.
    """
    refuse_too_many(selection.rejected, _rows(selection), max_bad, folder)
    if not selection.candidates:
        raise ValueError("nothing is left to write: no row of the sources can be used")
    options = [BUILD_VERSION, prefix, samples_per_shard, asdict(labelling), selection.digest()]
    if _is_complete(folder, options):
        progress(len(selection.candidates))
        return Manifest.read(folder)
    records = folder / RECORDS
    records.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(records / "lock", timeout=0):
            _claim(folder, options)
            tasks = _tasks(folder, prefix, selection.candidates, samples_per_shard)
            chunks = make_chunks(tasks, labelling, workers, progress)
            manifest = _finish(folder, selection, chunks, max_bad, {"options": options, **(about or {})})
    except Timeout:
        raise ValueError(f"{folder}: another build is writing there; wait for it, or choose another folder") from None
    shutil.rmtree(records)
    return manifest


def refuse_too_many(rejected: Sequence[Rejected], rows: int, max_bad: float, folder: Path) -> None:
    """RunError if more than a share `max_bad` of the rows cannot be used; all of them are then listed in a file."""
    if len(rejected) <= max_bad * rows:
        return
    folder.mkdir(parents=True, exist_ok=True)
    path = list_rejected(folder, rejected)
    counts = Counter(row.reason for row in rejected).most_common(3)
    why = "; ".join(f"{reason}: {count:,}" for reason, count in counts)
    raise RunError(
        f"{len(rejected):,} of {rows:,} rows cannot be used, more than the {100 * max_bad:g} % allowed ({why}); {path} "
        "lists them; mend the data, or allow more with --max_bad"
    )


def list_rejected(folder: Path, rejected: Sequence[Rejected]) -> Path:
    """Write every rejected row with its reason."""
    path = folder / REJECTED
    path.write_text("".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rejected), encoding="utf-8")
    return path


def _tasks(folder: Path, prefix: str, candidates: Sequence[Candidate], size: int) -> list[Task]:
    return [
        Task(
            folder / RECORDS / f"{number:06d}.json",
            folder / shard_name(prefix, number),
            candidates[first : first + size],
        )
        for number, first in enumerate(range(0, len(candidates), size))
    ]


def _claim(folder: Path, options: list[Any]) -> None:
    """Make the folder this build's, or recognize it."""
    path = folder / RECORDS / "plan.json"
    if path.exists():
        if json.loads(path.read_text()) != options:
            raise ValueError(f"{folder}: holds a part of another build; remove it, or choose another folder (--out)")
    elif any(folder.glob("*.tar")):
        raise ValueError(f"{folder}: already holds shards; remove them, or choose another folder (--out)")
    else:
        path.write_text(json.dumps(options))


def _is_complete(folder: Path, options: list[Any]) -> bool:
    if not (folder / NAME).exists():
        return False
    try:
        same = json.loads((folder / REPORT).read_text())["options"] == options
    except (OSError, ValueError, KeyError):
        same = False
    if not same:
        raise ShardError(f"{folder}: holds other shards; remove them, or choose another folder (--out)")
    return True


def _finish(folder: Path, selection: Selection, chunks: list[Chunk], max_bad: float, about: dict[str, Any]) -> Manifest:
    rejected = selection.rejected + [row for chunk in chunks for row in chunk.rejected]
    try:
        refuse_too_many(rejected, _rows(selection), max_bad, folder)
    except RunError:
        for number, chunk in enumerate(chunks):
            if chunk.rejected:  # so that the next run looks at these images again
                (folder / RECORDS / f"{number:06d}.json").unlink()
        raise
    manifest = Manifest(tuple(chunk.shard for chunk in chunks if chunk.shard is not None))
    if not len(manifest):
        raise RunError("no sample could be written")
    written = Counter(entry.source for shard in manifest.shards for entry in shard.entries)
    report = {
        **about,
        "rows": _rows(selection),
        "samples": len(manifest),
        "sources": {
            name: {"read": count, "chosen": selection.counts[name], "written": written[name]}
            for name, count in sorted(selection.read.items())
        },
        "rejected": dict(Counter(row.reason for row in rejected).most_common()),
        "repaired": dict(sum((chunk.repairs for chunk in chunks), Counter()).most_common()),
    }
    list_rejected(folder, rejected)
    (folder / REPORT).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    manifest.write(folder)
    return manifest


def _rows(selection: Selection) -> int:
    return sum(selection.read.values()) + len(selection.rejected)
