"""A data recipe: which published files become which shards. The content of `recipes/data/*.yaml`, checked."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from cropl.data.labelling import Labelling
from cropl.data.readers.base import Reader
from cropl.data.selection import Source, slug
from cropl.errors import UsageError, check_keys
from cropl.recipe import instantiate


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
        max_bad: share of rows that may be unusable.
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
                raise UsageError(f"data recipe: key {key!r} is missing; `cropl ls data/` lists the built-in ones")
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
        return len(os.sched_getaffinity(0)) if self.workers is None else self.workers

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
        """What the recipe needs and the disk does not have."""
        wanted = [path for source in sources for path in source.reader.files if not path.is_file()]
        found = [f"{path}: no such annotation file" for path in wanted]
        folders = {source.reader.images for source in sources if source.reader.images is not None}
        if not self.placeholder:
            found += [f"{folder}: no such folder of images" for folder in sorted(folders) if not folder.is_dir()]
        return found

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
