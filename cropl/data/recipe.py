"""A data recipe: which published files become which shards. The content of `recipes/data/*.yaml`, checked."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields
from itertools import islice
from pathlib import Path, PurePosixPath
from typing import Any

from cropl.data.labelling import Labelling
from cropl.data.readers.base import Reader, Rejected
from cropl.data.selection import Source, slug
from cropl.errors import UsageError, check_keys
from cropl.recipe import instantiate

FIRST_ROWS = 2000
"""Rows of each file whose images are looked for before a build: enough to see that a folder is not there."""

FIRST_IMAGES = 20


@dataclass
class DataRecipe:
    """What `cropl shards build` does.

    Attributes:
        out: folder of the shards.
        sources: readers (`class_path`, `init_args`), each with `take`: a seeded random subset of so many annotations.
        prefix: start of shard names and keys; the folder's name by default.
        caps: at most so many annotations of a source, by its name.
        groups: how a paper counts sources together (`sources`), and the number that it names (`published`).
        shuffle: seeded random order over all shards; otherwise that of the files.
        seed: of subsets and order.
        samples_per_shard: candidates of one shard.
        resize: longest side in pixels; null copies images byte for byte.
        placeholder: paint pictures instead of reading images.
        max_bad: share of the rows read that may be unusable, and share of those chosen whose image may be.
        workers: processes; null is one per core, 0 none beside this one.
        vars: names for `${vars...}`; not read here.
    """

    out: str
    sources: list[Any]
    prefix: str | None = None
    caps: dict[str, int] = field(default_factory=dict)
    groups: dict[str, Any] = field(default_factory=dict)
    shuffle: bool = True
    seed: int = 0
    samples_per_shard: int = 500
    resize: int | None = None
    placeholder: bool = False
    max_bad: float = 0.01
    workers: int | None = None
    vars: dict[str, Any] = field(default_factory=dict)

    @classmethod
    def from_config(cls, config: Mapping[str, Any]) -> DataRecipe:
        """A checked recipe.

        Raises:
            UsageError: an unknown or missing key, or a value that makes no sense; the message names it.
        """
        check_keys(dict(config), [one.name for one in fields(cls)], "data recipe")
        for key in ("out", "sources"):
            if not config.get(key):
                lack = "is empty" if key in config else "is missing"
                raise UsageError(f"data recipe: key {key!r} {lack}; `cropl ls data/` lists the built-in ones")
        for key, value in config.items():
            if value is True and key not in ("shuffle", "placeholder"):
                raise UsageError(f"data recipe: {key} (--{key}) needs a value")
        made = cls(**{key: value for key, value in config.items() if value is not None})
        made._check()
        return made

    @property
    def start_of_keys(self) -> str:
        """The prefix of shard names and keys."""
        return self.prefix or slug(Path(self.out).name)

    @property
    def labelling(self) -> Labelling:
        """How samples are made."""
        return Labelling(self.placeholder, self.resize)

    @property
    def processes(self) -> int:
        """Worker processes."""
        return cores() if self.workers is None else self.workers

    def open(self) -> list[Source]:
        """The readers.

        Raises:
            UsageError: a class that does not exist or is no reader, or wrong arguments.
        """
        opened = []
        for number, spec in enumerate(self.sources):
            where = f"sources[{number}]"
            if not isinstance(spec, Mapping):
                raise UsageError(f"{where}: needs a class_path and init_args")
            rest = {key: value for key, value in spec.items() if key != "take"}
            reader, take = instantiate(rest, where), spec.get("take")
            if not isinstance(reader, Reader):
                raise UsageError(f"{where}: {spec['class_path']} is no reader (cropl.data.readers.base.Reader)")
            if take is not None and (type(take) is not int or take < 1):
                raise UsageError(f"{where}: take {take!r} must be a number of at least 1, or null")
            opened.append(Source(reader, take))
        return opened

    def missing(self, sources: list[Source]) -> list[str]:
        """What the recipe needs and the disk does not have: files, folders of images, and the first rows' images."""
        wanted = [path for source in sources for path in source.reader.files if not path.is_file()]
        found = [f"{path}: no such annotation file" for path in wanted]
        folders = {source.reader.images for source in sources if source.reader.images is not None}
        if not self.placeholder:
            found += [f"{folder}: no such folder of images" for folder in sorted(folders) if not folder.is_dir()]
            for source in sources:
                if source.reader.streams and all(path.is_file() for path in source.reader.files):
                    found += self._missing_images(source.reader)
        return found

    def _missing_images(self, reader: Reader) -> Iterator[str]:
        """Folders right below `images` that the first rows name and that are not there, or have none of their images.

        What `max_bad` allows to be missing is not told.
        """
        images, rows, named = reader.images, 0, dict[str, list[str]]()
        if images is None or not images.is_dir():
            return
        try:
            for row in islice(reader, FIRST_ROWS):
                if isinstance(row, Rejected) or self.caps.get(row.source) == 0:
                    continue
                rows += 1
                path = PurePosixPath(row.image or "/")
                if not path.is_absolute() and ".." not in path.parts:
                    named.setdefault(path.parts[0] if len(path.parts) > 1 else "", []).append(str(path))
        except ValueError as error:
            yield str(error)
            return
        for top, paths in named.items():
            first, folder = list(dict.fromkeys(paths)), images / top
            if len(paths) <= self.max_bad * rows:
                continue
            if not os.path.isdir(folder):  # unlike Path's, not an error for a name that is too long
                yield f"{folder}: no such folder of images ({reader.file.name} names {len(first):,} images in it)"
            elif not any(os.path.exists(images / path) for path in first[:FIRST_IMAGES]):
                looked = f"the first {min(len(first), FIRST_IMAGES)} images that {reader.file.name} names in it"
                yield f"{folder}: none of {looked} is there ({first[0]!r})"

    def _check(self) -> None:
        whole = {"seed": 0, "samples_per_shard": 1, "resize": 1, "workers": 0}
        for name, least in whole.items():
            value = getattr(self, name)
            if value is not None and (type(value) is not int or value < least):
                raise UsageError(f"data recipe: {name} {value!r} must be a whole number of at least {least}")
        if not isinstance(self.max_bad, (int, float)) or not 0 <= self.max_bad <= 1:
            raise UsageError(f"data recipe: max_bad {self.max_bad!r} must be a share from 0 to 1")
        for name in ("shuffle", "placeholder"):
            if not isinstance(getattr(self, name), bool):
                raise UsageError(f"data recipe: {name} {getattr(self, name)!r} must be true or false")
        if not re.fullmatch(r"[A-Za-z0-9_-]{1,40}", self.start_of_keys):
            raise UsageError(f"data recipe: prefix {self.prefix!r} must be 1 to 40 letters, digits, '_' and '-'")
        if not isinstance(self.sources, list):
            raise UsageError("data recipe: sources must be a list of readers")
        for name, cap in self.caps.items():
            if type(cap) is not int or cap < 0:
                raise UsageError(f"data recipe: caps: {name}: {cap!r} must be a whole number")
        for name, group in self.groups.items():
            if not isinstance(group, Mapping) or not isinstance(group.get("sources"), list):
                raise UsageError(f"data recipe: groups: {name} needs a list `sources`, and may say `published`")


def cores() -> int:
    """Processor cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
