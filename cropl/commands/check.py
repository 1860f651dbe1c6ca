"""cropl check NAME... [-c OVERLAY] [--key value ...]

Says whether recipes can run here: keys, classes and arguments are right, the files and folders that they name are
there, and shards hold what the recipe's data module is for. Nothing is trained, answered or built. Exit code 0 if all
are well, 1 if something is missing, 2 for a mistake in a recipe.

  cropl check data/crop_mix --vars.viscot ~/visual-cot
  cropl check evaluate/llava_1_5_7b/table2 --vars.data /datasets
  cropl check my_study.yaml my_training.yaml
  cropl check localizer/qwen2_vl_2b -c trainer/fsdp2          # one training of both

Of a training it also estimates the memory on one GPU of 24 GB, one of 80 GB, and each of eight of 80 GB that share the
weights (trainer/fsdp2); on one GPU bfloat16 comes from autocast (trainer/single_gpu). `copies` are weights in bfloat16,
gathered or cast; a tenth of each GPU is left to CUDA and to what its allocator cannot use.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cropl import recipe
from cropl.commands.check_questions import questions_missing
from cropl.commands.models import is_path
from cropl.errors import FAILED, UsageError, check_keys

if TYPE_CHECKING:
    from cropl.evaluation.study import Study

TRAINING = ("model", "data", "trainer", "seed_everything", "ckpt_path", "allow_change", "vars")
FOLDERS = ("train_dir", "val_dir", "test_dir", "localization", "instruction")
"""Arguments of data modules that name folders of shards."""


def run(args: Sequence[str], training_cli: Callable[..., Any]) -> int:
    """The command; returns its exit code. `training_cli` parses a training recipe."""
    if not args or "-h" in args or "--help" in args:
        print(__doc__)
        return 0 if args else 2
    names, rest = [], list(args)
    while rest and not rest[0].startswith("-"):
        names.append(rest.pop(0))
    overlays, overrides = recipe.parse_flags(rest)
    if not names and not overlays:
        raise UsageError("name a recipe: cropl check data/crop_mix (`cropl ls` lists the built-in ones)")
    faults = 0
    for group in [[*names, *overlays]] if overlays else [[name] for name in names]:
        label, notes = "+".join(group), list[str]()
        found = list(missing(group, overrides, _without_recipes(rest), training_cli, notes))
        for line in [f"{label}: {fault}" for fault in found] or [f"{label}: ready"]:
            print(line)
        for note in notes:
            print(note)
        faults += len(found)
    return FAILED if faults else 0


def missing(
    names: Sequence[str],
    overrides: Mapping[str, Any],
    flags: Sequence[str],
    training_cli: Callable[..., Any],
    notes: list[str],
) -> Iterator[str]:
    """What a recipe with its overlays needs and does not find; what else is to be said of it goes into `notes`.

    Raises:
        UsageError: the recipe itself is wrong.
    """
    paths = [recipe.find(name) for name in names]
    stated = recipe.load(paths, dict(overrides))
    kind = recipe.kind_of(stated)
    if kind == "sources":
        yield from _of_data(stated)
    elif kind == "arms":
        yield from _of_suite(stated, notes) if "benchmarks" in stated else _of_study(stated, notes)
    elif kind == "scorer":
        yield from _of_benchmark(stated, str(names[0]))
    elif kind == "max_pixels":
        yield from _of_calibration(stated, notes)
    elif kind == "model" and "data" in stated:
        yield from _of_training(paths, flags, training_cli, notes)
    elif not set(stated) - {"vars"}:
        raise UsageError(f"{paths[0]}: an empty recipe")
    elif kind is None and {"trainer", "data"} & set(stated):  # what a training says, and no model, as an overlay
        check_keys(dict(stated), TRAINING, str(paths[0]))


def _without_recipes(flags: Sequence[str]) -> list[str]:
    """The flags without `-c NAME`, `--config NAME`."""
    left, rest = list[str](), list(flags)
    while rest:
        flag = rest.pop(0)
        if flag in ("-c", "--config"):
            rest.pop(0)
        elif not flag.startswith(("-c=", "--config=")):
            left.append(flag)
    return left


def _of_data(stated: Mapping[str, Any]) -> Iterator[str]:
    from cropl.data.recipe import DataRecipe

    given = DataRecipe.from_config(stated)
    yield from given.missing(given.open())


def _of_study(stated: Mapping[str, Any], notes: list[str]) -> Iterator[str]:
    from cropl.evaluation.study import Study

    study = Study.from_config(dict(stated))
    yield from _models([study], notes)
    yield from questions_missing(study)
    if folder := (study.data.get("init_args") or {}).get("folder"):
        yield from _shards("folder", folder)


def _of_suite(stated: Mapping[str, Any], notes: list[str]) -> Iterator[str]:
    from cropl.evaluation.suite import Suite

    suite = Suite.from_config(stated)
    yield from _models(suite.studies, notes)
    for study, prepare in zip(suite.studies, suite.prepare, strict=True):
        yield from (f"{study.benchmark}: {fault}" for fault in questions_missing(study, prepare))


def _of_benchmark(stated: Mapping[str, Any], name: str) -> Iterator[str]:
    from cropl.evaluation.study import Study
    from cropl.evaluation.suite import checked_benchmark

    own = checked_benchmark(stated, name)
    prepare = own.pop("prepare", None)
    yield from questions_missing(Study.from_config({"model": "any", "arms": [{"method": "dense"}], **own}), prepare)


def _models(studies: Sequence[Study], notes: list[str]) -> Iterator[str]:
    """Of studies of one model: what is missing of it, and of everything else that tells regions or answers."""
    study, arms = studies[0], [arm for study in studies for arm in study.arms]
    for arm in arms:
        recipe.load_object(arm.class_path)
    if study.family:
        from cropl.commands.models import own_family

        own_family(study.family)
    for key in ("model", "localizer", "grounding"):
        if name := getattr(study, key):
            yield from _checkpoint(key, name, notes)
    for name in dict.fromkeys(arm.model for arm in arms if arm.model):
        yield from _checkpoint("arms: model", name, notes)
    for file in dict.fromkeys(study.regions for study in studies if study.regions):
        if not Path(file).is_file():
            yield f"regions: {file}: no such file"


def _of_calibration(stated: Mapping[str, Any], notes: list[str]) -> Iterator[str]:
    from cropl.commands import calibrate

    options = calibrate.read(stated)
    yield from _checkpoint("localizer", options.localizer, notes)
    for key, name in options.data.items():
        where, _ = calibrate.source(key, name)
        if not where.startswith("testbed:"):
            yield from _shards(f"data.{key}", where)


def _of_training(
    paths: Sequence[Path], flags: Sequence[str], training_cli: Callable[..., Any], notes: list[str]
) -> Iterator[str]:
    configs = [part for path in paths for part in ("--config", str(path))]
    parsed = training_cli([*configs, *flags], run=False, instantiate=False).config
    from cropl.commands import check_memory

    notes += check_memory.told(parsed)
    lost: list[str] = []
    for part in ("model", "data"):
        arguments = parsed[part].get("init_args") or {}
        for key in ("checkpoint", "model", "localizer"):
            if isinstance(arguments.get(key), str):
                yield from _checkpoint(f"{part}.{key}", arguments[key], notes)
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
        yield f"{key}: {error}{_built_by(folder) if not Path(folder).exists() else ''}"


def _built_by(folder: str) -> str:
    """The built-in data recipe that writes this folder, with its command; empty if none does."""
    for name in recipe.names("data/"):
        text = recipe.find(name).read_text(encoding="utf-8")
        out = next((line.split()[1] for line in text.splitlines() if line.startswith("out: ")), "")
        if fnmatch(str(Path(folder)), re.sub(r"\$\{[^}]*\}", "*", out)):
            return f"; `cropl shards build -c {name}` writes it (`cropl show {name}` says from what)"
    return ""


def _checkpoint(key: str, name: str, notes: list[str]) -> Iterator[str]:
    """A name that is neither a folder nor shipped may be one on the hub: only paths can be told to be missing."""
    from huggingface_hub import try_to_load_from_cache

    if name.startswith(("testbed:", "untrained:")):
        from cropl.testbed import weights

        try:
            weights.resolve(name)
        except ValueError as error:
            yield f"{key}: {error}"
    elif is_path(name) and not Path(name).expanduser().is_dir():
        yield f"{key}: {name}: no such checkpoint folder"
    elif not Path(name).expanduser().is_dir() and not isinstance(try_to_load_from_cache(name, "config.json"), str):
        notes.append(f"{key}: {name} is not in the local cache: the first run fetches it from the Hugging Face hub")
