"""cropl check NAME... [--key value ...]

Says whether recipes can run here: keys, classes and arguments are right, the files and folders that they name are
there, and shards hold what the recipe's data module is for. Nothing is trained, answered or built. Exit code 0 if all
are well, 1 if something is missing, 2 for a mistake in a recipe.

  cropl check data/crop_mix --vars.viscot ~/visual-cot
  cropl check my_study.yaml my_training.yaml
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from cropl import recipe
from cropl.errors import FAILED, UsageError, check_keys

FOLDERS = ("train_dir", "val_dir", "test_dir", "localization", "instruction")
"""Arguments of data modules that name folders of shards."""


def run(args: Sequence[str], training_cli: Callable[..., Any]) -> int:
    """The command; returns its exit code. `training_cli` parses a training recipe."""
    if not args or "-h" in args or "--help" in args:
        print(__doc__)
        return 0 if args else 2
    names = []
    rest = list(args)
    while rest and (not rest[0].startswith("-") or rest[0] in ("-c", "--config")):
        first = rest.pop(0)
        if not first.startswith("-"):
            names.append(first)
    if not names:
        raise UsageError("name a recipe: cropl check data/crop_mix (`cropl ls` lists the built-in ones)")
    faults = 0
    for name in names:
        found = list(missing(name, rest, training_cli))
        for fault in found:
            print(f"{name}: {fault}")
        if not found:
            print(f"{name}: ready")
        faults += len(found)
    return FAILED if faults else 0


def missing(name: str, flags: Sequence[str], training_cli: Callable[..., Any]) -> Iterator[str]:
    """What a recipe needs and does not find. UsageError if the recipe itself is wrong."""
    path = recipe.find(name)
    stated = recipe.load([path], dict(recipe.parse_flags(flags)[1]))
    if "sources" in stated:
        yield from _of_data(stated)
    elif "arms" in stated:
        yield from _of_study(stated)
    elif "model" in stated and "data" in stated:
        yield from _of_training(path, flags, training_cli)
    elif not set(stated) - {"vars"}:
        raise UsageError(f"{path}: an empty recipe")


def _of_data(stated: Mapping[str, Any]) -> Iterator[str]:
    from cropl.data.recipe import DataRecipe

    given = DataRecipe.from_config(stated)
    yield from given.missing(given.open())


def _of_study(stated: Mapping[str, Any]) -> Iterator[str]:
    from cropl.evaluation.study import Study

    study = Study.from_config(dict(stated))
    for arm in study.arms:
        recipe.load_object(arm.class_path)
    source, arguments = recipe.load_object(study.data["class_path"]), dict(study.data.get("init_args") or {})
    check_keys(arguments, list(inspect.signature(source).parameters), f"data {study.data['class_path']}")
    for key in ("model", "localizer"):
        if name := getattr(study, key, None):
            yield from _checkpoint(key, name)
    if "folder" in arguments:
        yield from _shards("folder", arguments["folder"])


def _of_training(path: Path, flags: Sequence[str], training_cli: Callable[..., Any]) -> Iterator[str]:
    parsed = training_cli(["--config", str(path), *flags], run=False, instantiate=False).config
    lost: list[str] = []
    for part in ("model", "data"):
        arguments = parsed[part].get("init_args") or {}
        for key in ("checkpoint", "model", "localizer"):
            if isinstance(arguments.get(key), str):
                yield from _checkpoint(f"{part}.{key}", arguments[key])
        for key in FOLDERS:
            for folder in _listed(arguments.get(key)):
                lost += _shards(f"{part}.{key}", folder)
    yield from lost or _data_module(parsed.data.class_path, parsed.data.get("init_args") or {})


def _data_module(name: str, arguments: Mapping[str, Any]) -> Iterator[str]:
    """What a data module says of its shards before the first step; nothing is hashed or decoded."""
    from cropl.datamodules.benchmark import BenchmarkShards
    from cropl.datamodules.shards import ShardsDataModule

    family = recipe.load_object(name)
    if not issubclass(family, ShardsDataModule):
        return
    known = inspect.signature(family).parameters.values()
    if not any(one.name == "verify" or one.kind is one.VAR_KEYWORD for one in known):
        return  # a class of one's own, which sets it by itself
    try:
        family(**{**arguments, "verify": "size"}).setup("test" if issubclass(family, BenchmarkShards) else "fit")
    except ValueError as error:
        yield f"data: {error}"


def _listed(value: Any) -> list[str]:
    return [value] if isinstance(value, str) else list(value or [])


def _shards(key: str, folder: str) -> Iterator[str]:
    from cropl.data.manifest import ShardError
    from cropl.data.shards import open_folder

    try:
        open_folder(folder)
    except ShardError as error:
        yield f"{key}: {error}"


def _checkpoint(key: str, name: str) -> Iterator[str]:
    """A name that is neither a folder nor shipped may be one on the hub: only paths can be told to be missing."""
    if name.startswith(("testbed:", "untrained:")):
        from cropl.testbed import weights

        try:
            weights.resolve(name)
        except ValueError as error:
            yield f"{key}: {error}"
    elif (name.startswith((".", "/", "~")) or name.count("/") != 1) and not Path(name).expanduser().is_dir():
        yield f"{key}: {name}: no such checkpoint folder"
