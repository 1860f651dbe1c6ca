"""Writes a training's checkpoint as a plain `transformers` folder, with its processor and a model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cropl.commands.arguments import HelpShown, Parser
from cropl.errors import UsageError

EPILOG = """A checkpoint holds what was trained, and no more: the recipe says of which model and which module. By
default it is the config.yaml that the training wrote beside its checkpoints. LoRA adapters are merged; where the
training kept averages of its weights (EMA), they are what is written.

  cropl export runs/plc exported                        # the newest checkpoint of a run
  cropl export runs/plc/checkpoints/step-000500 exported --dtype float16
  cropl export step-000500 exported -c my.yaml --model.init_args.checkpoint ~/models/llava"""
LOOKED = 3
"""Folders above a checkpoint in which a config.yaml is looked for."""


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code."""
    parser = Parser("export", __doc__, EPILOG, usage="cropl export CHECKPOINT OUT [-c RECIPE] [--key value ...]")
    parser.add_argument("checkpoint", help="what a training wrote: a run, a step of it, or a .ckpt file")
    parser.add_argument("out", help="folder to write; an earlier export there is replaced")
    parser.add_argument("--dtype", help="of the weights on disk, such as float16 (default: the training's)")
    parser.add_argument("-c", "--config", action="append", default=[], help="the training's recipe, by name or path")
    try:
        given, overrides = parser.parse_known_args(list(args))
    except HelpShown:
        return 0
    flags = [part for name in given.config for part in ("-c", name)] + overrides
    folder = export(Path(given.checkpoint), Path(given.out), given.dtype, flags)
    print(f"{folder}: cropl ask IMAGE QUESTION {_asked_with(folder)}")
    return 0


def _asked_with(folder: Path) -> str:
    """The flags with which `cropl ask` takes what was exported."""
    from cropl.models.card import is_localizer
    from cropl.models.loading import load_config
    from cropl.models.vlm import family

    config = load_config(str(folder))
    if is_localizer(config):
        return f"--localizer {folder}"
    return f"--model {folder} " + ("--localizer LOCALIZER" if family(config.model_type).prunable else "--method dense")


def export(checkpoint: Path, out: Path, dtype: str | None = None, flags: Sequence[str] = ()) -> Path:
    """Write `checkpoint` as the folder `out`; `flags` name a recipe (`-c NAME`) and overrides of it.

    Raises:
        UsageError: the checkpoint is not there or is no single file, or the recipe is missing.
        ValueError: the checkpoint is not of the recipe's module, or `out` holds other things.
    """
    from cropl.callbacks.identity import base_of, check_base
    from cropl.models.export import check_replaceable

    checkpoint = find(checkpoint)
    _check_dtype(dtype)
    check_replaceable(out)
    stored = _read(checkpoint)
    stated = _recipe(checkpoint, stored, flags)
    module = _module(stated["model"])
    check_base(stored.get("cropl", {}).get("base", {}), base_of(module))
    module.on_load_checkpoint(stored)
    module.float32_masters()  # or loading would round them
    module.load_state_dict(stored["state_dict"], strict=False)
    # Last: tied weights have one name among the averages, and every other one of the state dict would undo it.
    if unknown := module.load_state_dict(_averages(stored), strict=False).unexpected_keys:
        raise UsageError(f"{checkpoint}: has averages (EMA) of {unknown[0]}, which is no weight of this model")
    module.facts = {"recipe": _text(stated), "data": _data(stated), "steps": stored.get("global_step")}
    module.export(out, dtype)
    return out


def find(given: Path) -> Path:
    """The checkpoint file that a file, the folder of a step, or that of a run stands for.

    Raises:
        UsageError: there is none, it is damaged, or its weights are sharded.
    """
    from cropl.callbacks import complete
    from cropl.parallel import METADATA, consolidated

    if given.is_file():
        return given
    if not given.is_dir():
        raise UsageError(f"{given}: no such checkpoint")
    step = given
    if not any((given / name).is_file() for name in (complete.WHOLE, METADATA)):
        step = _newest(given)
    if (step / complete.MARKER).is_file() and (wrong := complete.damage(step)):
        raise UsageError(f"{step} is damaged: {wrong}")
    if not (step / complete.WHOLE).is_file():
        file = consolidated(step)
        raise UsageError(
            f"{step} holds sharded weights: `cropl consolidate {step} {file}` makes one file of it, to be exported"
        )
    return step / complete.WHOLE


def _newest(run: Path) -> Path:
    """The newest sound checkpoint of a run, or in a folder of checkpoints."""
    from cropl.callbacks.run_folder import last

    try:
        newest = last(run, tell=True) or last(run / "checkpoints", tell=True)
    except ValueError as error:
        raise UsageError(f"{error}, and none can be exported: give a copy of one, or another run") from None
    if newest is None:
        raise UsageError(f"{run}: no checkpoint lies in this folder; give the folder of a run, or of a step of it")
    return newest


def _check_dtype(dtype: str | None) -> None:
    known = ("float32", "bfloat16", "float16")
    if dtype is not None and dtype not in known:
        raise UsageError(f"dtype {dtype!r} must be one of {', '.join(known)}")


def _recipe(checkpoint: Path, stored: Mapping[str, Any], flags: Sequence[str]) -> dict[str, Any]:
    """The recipe that flags name, or the one that the training wrote, with the flags' overrides."""
    from cropl import recipe

    names, overrides = recipe.parse_flags(flags)
    paths = [recipe.expect("model", name) for name in names] or [_beside(checkpoint)]
    if not names:
        _check_written_by(paths[0], recipe.load(paths), stored)
    stated = recipe.load(paths, overrides)
    if not isinstance(stated.get("model"), Mapping):
        raise UsageError(f"{paths[0]}: not a training recipe, it has no model")
    return stated


def _check_written_by(path: Path, stated: dict[str, Any], stored: Mapping[str, Any]) -> None:
    """UsageError if a recipe, which nobody has named, is of another training than the checkpoint beside it."""
    from cropl.callbacks.identity import differences, settings_of

    saved = stored.get("cropl", {}).get("settings", {})
    if wrong := [each for each in differences(saved, settings_of(stated)) if each.startswith("model.")]:
        raise UsageError(
            f"{path} is not of the training that wrote this checkpoint ({'; '.join(wrong)}): name its recipe with -c"
        )


def _beside(checkpoint: Path) -> Path:
    """The recipe that a training wrote: near its checkpoint."""
    for folder in list(checkpoint.absolute().parents)[:LOOKED]:
        if (folder / "config.yaml").is_file():
            return folder / "config.yaml"
    raise UsageError(f"no config.yaml lies beside {checkpoint}: name the recipe of the training with -c")


def _module(stated: Mapping[str, Any]) -> Any:
    """The training module of a recipe's `model`, with its base model loaded."""
    from jsonargparse import ArgumentError, ArgumentParser
    from transformers.utils import logging

    from cropl.modules.base import TrainingModule

    logging.disable_progress_bar()
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(TrainingModule, "model")
    try:
        parsed = parser.parse_object({"model": dict(stated)})
    except ArgumentError as error:
        raise UsageError(f"the recipe's model: {' '.join(str(error).split())}") from None
    module = parser.instantiate(parsed).model
    if not hasattr(module, "export"):
        raise UsageError(f"{type(module).__name__} cannot be exported: it has no `export`")
    return module


def _read(checkpoint: Path) -> dict[str, Any]:
    import torch

    try:
        stored: dict[str, Any] = torch.load(checkpoint, map_location="cpu", mmap=True, weights_only=True)
        if not isinstance(stored["state_dict"], dict):
            raise TypeError("state_dict is no dict")
    except Exception as error:  # torch raises what its readers happen to raise
        raise UsageError(f"{checkpoint}: not a training's checkpoint ({' '.join(str(error).split())[:120]})") from error
    return stored


def _averages(stored: Mapping[str, Any]) -> dict[str, Any]:
    """The averaged weights of a training with EMA."""
    kept = (state for name, state in (stored.get("callbacks") or {}).items() if name.startswith("EMA"))
    return next((dict(state["averages"]) for state in kept if state.get("averages")), {})


def _text(stated: Mapping[str, Any]) -> str:
    import yaml

    return yaml.safe_dump(dict(stated), sort_keys=False)


def _data(stated: Mapping[str, Any]) -> str:
    data = stated.get("data") or {}
    arguments = data.get("init_args") or {}
    folders = [arguments[key] for key in ("train_dir", "localization", "instruction") if arguments.get(key)]
    listed = ", ".join(f"`{one}`" for each in folders for one in ([each] if isinstance(each, str) else each))
    return f"{str(data.get('class_path', '')).rpartition('.')[2]}{f' of {listed}' if listed else ''}"
