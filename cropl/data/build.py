"""Building a set of shards in parallel, so that it can be killed at any time and continued.

The selection is cut into chunks, and each chunk becomes one shard, in a process of its own. A finished shard leaves a
record in `.build`; whoever starts the same build again does only what has no record. The manifest is written last.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cropl.data.chunks import Chunk, Task, make_chunks
from cropl.data.files import write_whole
from cropl.data.labelling import Labelling
from cropl.data.manifest import NAME, Manifest, ShardError
from cropl.data.readers.base import Rejected
from cropl.data.selection import Candidate, Progress, Selection, reasons
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
        max_bad: share of the rows read that may be unusable, and share of the candidates whose image may be.
        workers: processes; 0 works in this one.
        about: further facts for the report `build.json`.
        progress: told how many more candidates are done.

    Raises:
        ValueError: the folder holds something else, another build is writing into it, or a key comes twice.
        RunError: too many rows cannot be used, and the next run looks at them again; or a process died.
    """
    _refuse_foreign(folder)
    twice = [key for key, times in Counter(one.key for one in selection.candidates).most_common(1) if times > 1]
    if twice:
        raise ValueError(f"sample key {twice[0]!r} comes more than once; keys must be unique")
    (folder / RECORDS).mkdir(parents=True, exist_ok=True)  # whoever finds it knows whose folder this is
    refuse_too_many(selection.rejected, _rows(selection), max_bad, folder)
    if not selection.candidates:
        raise ValueError("nothing is left to write: no row of the sources can be used")
    options = [BUILD_VERSION, prefix, samples_per_shard, asdict(labelling), selection.digest()]
    records = folder / RECORDS
    if _is_complete(folder, options):
        progress(len(selection.candidates))
        shutil.rmtree(records, ignore_errors=True)  # left by a build that was killed after its last step but this
        return Manifest.read(folder)
    try:
        with FileLock(records / "lock", timeout=0):
            _claim(folder, options)
            tasks = _tasks(folder, prefix, selection.candidates, samples_per_shard)
            chunks = _make(folder, tasks, selection, labelling, workers, max_bad, progress)
            manifest = _finish(folder, selection, chunks, {"options": options, **(about or {})})
    except Timeout:
        raise ValueError(f"{folder}: another build is writing there; wait for it, or choose another folder") from None
    shutil.rmtree(records, ignore_errors=True)
    return manifest


def refuse_too_many(
    rejected: Sequence[Rejected], rows: int, max_bad: float, folder: Path, earlier: Sequence[Rejected] = ()
) -> None:
    """RunError if more than a share `max_bad` of the rows cannot be used.

    All of them are then listed in a file, after those that were rejected `earlier` and do not count here.
    """
    if len(rejected) <= max_bad * rows:
        return
    path = list_rejected(folder, [*earlier, *rejected])
    why = "; ".join(f"{reason}: {count:,}" for reason, count in reasons(rejected).most_common(3))
    raise RunError(
        f"{len(rejected):,} of {rows:,} rows cannot be used, more than the {100 * max_bad:g} % allowed ({why}); {path} "
        "lists them; mend the data, or allow more with --max_bad"
    )


def list_rejected(folder: Path, rejected: Sequence[Rejected]) -> Path:
    """Write every rejected row with its reason."""
    path = folder / REJECTED
    lines = "".join(json.dumps(asdict(row), ensure_ascii=False) + "\n" for row in rejected)
    path.write_text(lines, encoding="utf-8", errors="backslashreplace")  # half a character becomes its JSON escape
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
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, ValueError):
        found = None
    if found == options:
        return
    if any(path.parent.glob("[0-9]*.json")) or any(folder.glob("*.tar")):
        raise ValueError(
            f"{folder}: holds a part of another build (other rows, seed, prefix, sizes or --placeholder); remove it, "
            "or choose another folder (--out)"
        )
    write_whole(path, json.dumps(options))


def _refuse_foreign(folder: Path) -> None:
    """Write into nobody else's folder: a build's own one is known by its records or its manifest."""
    if not folder.is_dir() or (folder / RECORDS).is_dir() or (folder / NAME).exists():
        return
    found = sorted(path.name for path in folder.iterdir())
    if any(name.endswith(".tar") for name in found):
        raise ValueError(f"{folder}: already holds shards; remove them, or choose another folder (--out)")
    if found:
        more = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise ValueError(f"{folder}: holds other files ({found[0]}{more}); choose a new folder (--out)")


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


def _make(
    folder: Path,
    tasks: Sequence[Task],
    selection: Selection,
    labelling: Labelling,
    workers: int,
    max_bad: float,
    progress: Progress,
) -> list[Chunk]:
    """All chunks in order; RunError as soon as too many candidates are rejected, and the good chunks stay."""
    made: dict[int, Chunk] = {}
    count, total = 0, len(selection.candidates)
    with closing(make_chunks(tasks, labelling, workers)) as chunks:
        for number, chunk in chunks:
            made[number] = chunk
            progress(len(tasks[number].candidates))
            count += len(chunk.rejected)
            if count > max_bad * total:
                break
    rejected = [row for number in sorted(made) for row in made[number].rejected]
    try:
        refuse_too_many(rejected, total, max_bad, folder, selection.rejected)
    except RunError:
        for task in tasks:
            found = task.done()
            if found is not None and found.rejected:  # so that the next run looks at these images again
                task.record.unlink()
        raise
    return [made[number] for number in range(len(tasks))]


def _finish(folder: Path, selection: Selection, chunks: list[Chunk], about: dict[str, Any]) -> Manifest:
    rejected = selection.rejected + [row for chunk in chunks for row in chunk.rejected]
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
        "rejected": dict(reasons(rejected).most_common()),
        "repaired": dict(sum((chunk.repairs for chunk in chunks), Counter()).most_common()),
    }
    list_rejected(folder, rejected)
    (folder / REPORT).write_text(json.dumps(report, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    manifest.write(folder)
    return manifest


def _rows(selection: Selection) -> int:
    return sum(selection.read.values()) + len(selection.rejected)
