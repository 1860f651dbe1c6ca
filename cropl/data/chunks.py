"""The parallel part of a build: each chunk of candidates becomes one shard and leaves a record of it."""

from __future__ import annotations

import json
import multiprocessing
import signal
from collections import Counter
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass, field
from itertools import islice
from pathlib import Path

from cropl.data.files import write_whole
from cropl.data.images import ImageError
from cropl.data.labelling import Labelling
from cropl.data.manifest import Entry, Shard
from cropl.data.readers.base import BadRow, Rejected
from cropl.data.selection import Candidate
from cropl.data.writer import ShardFile
from cropl.errors import RunError


@dataclass
class Chunk:
    """What one process has made of its candidates."""

    shard: Shard | None
    rejected: list[Rejected] = field(default_factory=list)
    repairs: Counter[str] = field(default_factory=Counter)

    def write(self, path: Path) -> None:
        """Leave the record, whole or not at all."""
        record = {
            "shard": None if self.shard is None else asdict(self.shard),
            "rejected": [asdict(row) for row in self.rejected],
            "repairs": dict(self.repairs),
        }
        write_whole(path, json.dumps(record))

    @classmethod
    def read(cls, path: Path) -> Chunk:
        """The record at `path`; ValueError if it is damaged."""
        record = json.loads(path.read_text(encoding="utf-8"))
        shard = record["shard"]
        if shard is not None:
            shard = Shard(**{**shard, "entries": tuple(Entry(*row) for row in shard["entries"])})
        return cls(shard, [Rejected(**row) for row in record["rejected"]], Counter(record["repairs"]))


def write_chunk(path: Path, candidates: Sequence[Candidate], labelling: Labelling) -> Chunk:
    """One shard of the candidates that can be used; none if there is no such candidate."""
    made = Chunk(None)
    file = ShardFile(path)
    try:
        for candidate in candidates:
            try:
                file.write(labelling.sample(candidate, made.repairs))
            except BadRow as bad:
                made.rejected.append(Rejected(_where(candidate), bad.reason, bad.detail))
            except ImageError as error:
                made.rejected.append(Rejected(_where(candidate), "the image cannot be used", str(error)))
        if len(file):
            made.shard = file.finish()
        else:
            file.discard()
    except BaseException:
        file.discard()
        raise
    return made


@dataclass(frozen=True)
class Task:
    """A chunk to be made: its candidates, the shard that they become, and where the record goes."""

    record: Path
    shard: Path
    candidates: Sequence[Candidate]

    def done(self) -> Chunk | None:
        """What an earlier run has made of it."""
        try:
            made = Chunk.read(self.record)
        except (OSError, ValueError, KeyError, TypeError):
            return None
        whole = made.shard is None or (self.shard.is_file() and self.shard.stat().st_size == made.shard.bytes)
        return made if whole else None


def _leave_interrupts() -> None:
    """Ctrl-C reaches every process; the first one ends the others."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def _do(task: Task, labelling: Labelling) -> Chunk:
    made = write_chunk(task.shard, task.candidates, labelling)
    made.write(task.record)
    return made


def make_chunks(tasks: Sequence[Task], labelling: Labelling, workers: int) -> Generator[tuple[int, Chunk], None, None]:
    """All chunks with their numbers: first those of an earlier run, then the others as they are made.

    Whoever closes the iterator before its end waits for the chunks that are being made; they leave their records.
    """
    left = []
    for number, task in enumerate(tasks):
        chunk = task.done()
        if chunk is None:
            left.append(number)
        else:
            yield number, chunk
    yield from _run(tasks, left, labelling, workers)


def _run(tasks: Sequence[Task], left: list[int], labelling: Labelling, workers: int) -> Iterator[tuple[int, Chunk]]:
    if workers < 1:
        for number in left:
            yield number, _do(tasks[number], labelling)
        return
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    with ProcessPoolExecutor(workers, context, _leave_interrupts) as pool:
        waiting = iter(left)
        running: dict[Future[Chunk], int] = {}
        try:
            while True:
                for number in islice(waiting, 2 * workers - len(running)):  # more would only fill memory
                    running[pool.submit(_do, tasks[number], labelling)] = number
                if not running:
                    return
                for future in wait(running, return_when=FIRST_COMPLETED).done:
                    yield running.pop(future), future.result()
        except BrokenProcessPool:
            raise RunError(
                "a worker process died (out of memory?); start again to continue, with fewer --workers"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _where(candidate: Candidate) -> str:
    return f"{candidate.key} (id {candidate.annotation.id}, image {candidate.annotation.image})"
