"""What a run has found out so far, on disk: a run that is killed continues, and several processes share their finds.

Every process appends to a file of its own, a line per find, and reads all of them. A line that was cut off in the
middle is not there. What was found under other settings is told apart by a fingerprint in the first line.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import Any, Protocol

from filelock import FileLock, Timeout

from cropl.errors import RunError, UsageError
from cropl.evaluation.part import Part

_log = logging.getLogger(__name__)

FOLDER = ".partial"
"""Where the finds of a run lie, in the folder of its results, until it is done."""


class Finds(Protocol):
    """What has been found out so far, and where more of it goes."""

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Write finds."""

    def read(self) -> Iterable[Mapping[str, Any]]:
        """Every find, in no order."""

    def released(self) -> AbstractContextManager[None]:
        """While others may write as this part: nothing is appended meanwhile."""


class Memory:
    """Finds of a run that nobody will continue."""

    def __init__(self) -> None:
        self.finds: list[Mapping[str, Any]] = []

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        self.finds.extend(records)

    def read(self) -> Iterable[Mapping[str, Any]]:
        return self.finds

    def released(self) -> AbstractContextManager[None]:
        return nullcontext()


@contextmanager
def opened(
    folder: Path | None, kind: str, fingerprint: Mapping[str, Any], part: Part, cache: Path | None = None
) -> Iterator[Finds]:
    """The finds of one kind of a run into `folder`; in memory where there is none.

    Args:
        folder: of the run. Its finds lie in `FOLDER` there until it is done.
        kind, fingerprint, part: as for `Journal`.
        cache: where finds stay for other runs with the same fingerprint, in place of the folder.
    """
    if folder is None:
        yield Memory()
        return
    place = folder / FOLDER
    if cache is not None:
        told = json.dumps(fingerprint, sort_keys=True).encode()
        place = cache.with_name(f"{cache.name}-{hashlib.sha1(told, usedforsecurity=False).hexdigest()[:12]}")
    journal = Journal(place, kind, fingerprint, part, wait=cache is not None)
    try:
        yield journal
    finally:
        journal.close()


class Journal:
    """The files of one kind of find in one folder.

    Args:
        folder: made where it is missing.
        kind: start of the files' names, such as "answers".
        fingerprint: names and values of everything that the finds depend on, as JSON can hold it.
        part: whose file is written.
        wait: for another process that writes as this part.

    Raises:
        UsageError: there are finds with another fingerprint; the message says what differs.
        RunError: another process writes as this part.
    """

    def __init__(self, folder: Path, kind: str, fingerprint: Mapping[str, Any], part: Part, wait: bool = False) -> None:
        self.folder, self.kind = folder, kind
        self.fingerprint = json.loads(json.dumps(fingerprint))
        folder.mkdir(parents=True, exist_ok=True)
        self.path = folder / f"{kind}.{part.index}-of-{part.of}.jsonl"
        self._lock = FileLock(f"{self.path}.lock", timeout=0)
        try:
            self._lock.acquire()
        except Timeout:
            if not wait:
                raise RunError(
                    f"{self.path}: another run is writing it; wait for its end, or give another --out"
                ) from None
            _log.warning("waiting for another run, which is predicting the same regions (%s)", self.path)
            self._lock.acquire(timeout=-1)
        try:
            for file in self._files():
                self._check(file)
            _cut_torn(self.path)
            self._file = open(self.path, "ab")  # noqa: SIM115
            if not self._file.tell():
                self.append([{"fingerprint": self.fingerprint}])
        except BaseException:
            self._lock.release()
            raise

    def append(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Write finds; they are there for others, and after a kill of this process, once this returns."""
        self._file.write(b"".join(json.dumps(one, ensure_ascii=False).encode() + b"\n" for one in records))
        self._file.flush()

    def read(self) -> Iterator[dict[str, Any]]:
        """Every find of every process, in no order."""
        for file in self._files():
            for line in _lines(file):
                if "fingerprint" not in line:
                    yield line

    @contextmanager
    def released(self) -> Iterator[None]:
        """See `Finds`."""
        self._lock.release()
        try:
            yield
        finally:
            self._lock.acquire(timeout=-1)

    def close(self) -> None:
        """No more finds of this process."""
        self._file.close()
        self._lock.release()

    def _files(self) -> list[Path]:
        return sorted(self.folder.glob(f"{self.kind}.*-of-*.jsonl"))

    def _check(self, file: Path) -> None:
        first = next(_lines(file), None)
        if first is None:  # killed before its first line
            return
        theirs = first.get("fingerprint")
        if theirs == self.fingerprint:
            return
        known = theirs if isinstance(theirs, dict) else {}
        pairs = {name: (known.get(name), self.fingerprint.get(name)) for name in {**self.fingerprint, **known}}
        told = "; ".join(f"{name} {_short(a)}, now {_short(b)}" for name, (a, b) in pairs.items() if a != b)
        raise UsageError(
            f"{self.folder}: holds an interrupted run with other settings ({told}): continue it with its own, "
            "--fresh to begin anew, or give another --out"
        )


def forget(folders: Iterable[Path]) -> None:
    """Delete what was found for the results in these folders; what lies in a cache stays."""
    for folder in folders:
        shutil.rmtree(folder / FOLDER, ignore_errors=True)


def _lines(file: Path) -> Iterator[dict[str, Any]]:
    """The complete lines of a file.

    Raises:
        RunError: one is not JSON.
    """
    with open(file, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.endswith(b"\n"):
                return
            try:
                found = json.loads(line)
                if not isinstance(found, dict):
                    raise ValueError("no object")
            except ValueError as error:
                raise RunError(f"{file}: line {number} is damaged ({error}); delete the file, or --fresh") from None
            yield found


def _cut_torn(file: Path) -> None:
    """Drop a last line without an end, so that the next one does not join it."""
    if not file.exists():
        return
    content = file.read_bytes()
    if content and not content.endswith(b"\n"):
        with open(file, "rb+") as torn:
            torn.truncate(content.rfind(b"\n") + 1)


def _short(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
