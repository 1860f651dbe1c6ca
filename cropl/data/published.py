"""A benchmark's published questions as samples to evaluate on: all of them, or an error that names what is wrong."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from cropl.data.images import ImageError, image_size
from cropl.data.labelling import Labelling, image_path
from cropl.data.readers.base import BadRow, Reader, Rejected
from cropl.data.sample import Sample
from cropl.data.selection import Candidate, Source, select
from cropl.errors import UsageError
from cropl.recipe import instantiate

PREFIX = "q"
HEADERS = 16  # read at once: on a network's disk each takes milliseconds of waiting

Header = tuple[int, int] | ImageError


def questions(sources: Sequence[Reader | Mapping[str, Any]], count: int | Sequence[int] | None = None) -> list[Sample]:
    """Every question of the files, in their order, with its image as a path.

    Unlike a set to train on, one to evaluate on may lack nothing. Of the images only headers are read, each once.

    Args:
        sources: readers, or their `class_path` and `init_args`.
        count: how many questions there must be, or the numbers that will do; None takes what is there.

    Raises:
        UsageError: a class that does not exist or is no reader, or wrong arguments.
        ValueError: a row cannot be used, an image is missing or unusable, or it is another number of questions; the
            message names the first file, row and reason.
    """
    readers = [_reader(one, f"sources[{number}]") for number, one in enumerate(sources)]
    selection = select([Source(reader) for reader in readers], PREFIX, shuffle=False)
    _refuse(selection.rejected, sum(selection.read.values()))
    _check_count(len(selection.candidates), count, readers)
    for one in selection.candidates:
        if one.images is None and one.annotation.image is not None:
            row = one.annotation
            raise ValueError(
                f"{row.source}, question {row.id} is about {row.image}: give the reader's folder of `images`"
            )
    headers = _headers(selection.candidates)
    found: list[Sample] = []
    bad: list[Rejected] = []
    for candidate in selection.candidates:
        try:
            found.append(Labelling().sample(candidate, Counter(), lambda path: _size(headers[path])))
        except BadRow as error:
            row = candidate.annotation
            bad.append(Rejected(f"{row.source}, question {row.id}", error.reason, error.detail))
    _refuse(bad, len(found))
    return found


def _reader(source: Reader | Mapping[str, Any], where: str) -> Reader:
    reader = source if isinstance(source, Reader) else instantiate(source, where)
    if not isinstance(reader, Reader):
        raise UsageError(f"{where}: {type(reader).__name__} is no reader (cropl.data.readers.base.Reader)")
    return reader


def _refuse(bad: Sequence[Rejected], good: int) -> None:
    """ValueError if a question would be left out."""
    if bad:
        first = bad[0]
        told = f": {first.detail}" if first.detail else ""
        raise ValueError(
            f"{len(bad):,} of {good + len(bad):,} questions cannot be asked, and an evaluation may leave none out; the "
            f"first is {first.where}: {first.reason}{told}"
        )


def _check_count(found: int, wanted: int | Sequence[int] | None, readers: Sequence[Reader]) -> None:
    allowed = (wanted,) if isinstance(wanted, int) else wanted
    if allowed is not None and found not in allowed:
        files = ", ".join(str(reader.file) for reader in readers)
        expected = " or ".join(f"{one:,}" for one in allowed)
        raise ValueError(f"{files}: {found:,} questions, not {expected}; are these the published files, and whole?")


def _headers(candidates: Iterable[Candidate]) -> dict[Path, Header]:
    """The displayed size of every image, or why it has none."""
    paths: dict[Path, None] = {}
    for candidate in candidates:
        if candidate.annotation.image is not None:
            try:
                paths[image_path(candidate)] = None
            except BadRow:  # told with its question
                continue
    with ThreadPoolExecutor(HEADERS) as pool:
        return dict(zip(paths, pool.map(_header, paths), strict=True))


def _header(path: Path) -> Header:
    try:
        return image_size(path)
    except ImageError as error:
        return error


def _size(header: Header) -> tuple[int, int]:
    if isinstance(header, ImageError):
        raise header
    return header
