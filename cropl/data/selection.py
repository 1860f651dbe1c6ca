"""Which annotations of which published files go into a set of shards: read, capped, drawn and ordered by a seed."""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

import numpy as np

from cropl.data.readers.base import Annotation, Reader, Rejected
from cropl.data.seeded import seeded
from cropl.errors import nearest

VERSION = "cropl-selection-1"
"""Names the algorithm of this file: another one chooses others."""

Progress = Callable[[int], None]
"""Told how many more are done."""


@dataclass(frozen=True)
class Source:
    """A reader, and how many of its annotations are taken: a seeded random subset; None takes all."""

    reader: Reader
    take: int | None = None


@dataclass(frozen=True)
class Candidate:
    """An annotation that is to become a sample: its key, and the folder that its image path starts from."""

    key: str
    images: Path | None
    annotation: Annotation


@dataclass
class Selection:
    """What was read and what of it is to be written, in order.

    Attributes:
        candidates: to be written.
        rejected: rows that cannot be used.
        read: annotations of each source, before anything is left out by a cap.
    """

    candidates: list[Candidate]
    rejected: list[Rejected]
    read: Counter[str] = field(default_factory=Counter)

    @property
    def counts(self) -> Counter[str]:
        """Candidates of each source."""
        return Counter(candidate.annotation.source for candidate in self.candidates)

    def digest(self) -> str:
        """Identifies the candidates and their order."""
        digest = hashlib.sha256()
        for candidate in self.candidates:
            digest.update(json.dumps([candidate.key, str(candidate.images), asdict(candidate.annotation)]).encode())
        return digest.hexdigest()


def select(
    sources: Sequence[Source],
    prefix: str,
    caps: Mapping[str, int] | None = None,
    shuffle: bool = True,
    seed: int = 0,
    progress: Progress = lambda done: None,
) -> Selection:
    """Read the sources and choose.

    Args:
        sources: readers in order.
        prefix: start of every key, so that sets which are mixed later do not share one.
        caps: at most so many annotations of a source, by its name: a seeded random subset.
        shuffle: in seeded random order; otherwise in that of the files.
        seed: of subsets and order.
        progress: told how many rows were read.

    Raises:
        ValueError: a file is missing or unreadable, a cap names a source that no file has, or nothing is left.
    """
    rejected: list[Rejected] = []
    candidates: list[Candidate] = []
    read: Counter[str] = Counter()
    numbers: Counter[str] = Counter()  # by slug: different sources may have the same one
    for source in sources:
        found: list[Candidate] = []
        for row in source.reader:
            progress(1)
            if isinstance(row, Rejected):
                rejected.append(row)
                continue
            read[row.source] += 1
            name = slug(row.source)
            numbers[name] += 1
            found.append(Candidate(f"{prefix}-{name}-{numbers[name]:07d}", source.reader.images, row))
        candidates += _subset(found, source.take, seed, source.reader.file.name)
    for name in caps or {}:
        if name not in read:
            raise ValueError(f"caps: no row of source {name!r}{nearest(name, sorted(read), 'sources')}")
    for name, cap in (caps or {}).items():
        mine = {id(c) for c in _subset([c for c in candidates if c.annotation.source == name], cap, seed, name)}
        candidates = [c for c in candidates if c.annotation.source != name or id(c) in mine]
    if shuffle:
        candidates = [candidates[i] for i in seeded(VERSION, seed, "order").permutation(len(candidates))]
    return Selection(candidates, rejected, read)


def slug(text: str) -> str:
    """`text` as a part of a key: letters, digits and hyphens, at most 40."""
    return re.sub(r"[^A-Za-z0-9]+", "-", text).strip("-")[:40] or "x"


def reasons(rejected: Iterable[Rejected]) -> Counter[str]:
    """How many rows were rejected for what."""
    return Counter(row.reason for row in rejected)


def _subset(found: list[Candidate], count: int | None, seed: int, name: str) -> list[Candidate]:
    """A seeded subset, in the order of `found`."""
    if count is None or count >= len(found):
        return found
    chosen = np.sort(seeded(VERSION, seed, "subset", name).permutation(len(found))[:count])
    return [found[i] for i in chosen]
