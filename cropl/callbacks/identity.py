"""What a training is of, as its checkpoints record it: the base model, and the settings that decide what is learnt."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from cropl import __version__, recipe

_BLOCKS, _BLOCK = 16, 4096

_log = logging.getLogger(__name__)

IRRELEVANT = {
    "activation_checkpointing", "cache", "checkpoint", "eval_batch", "micro_batch", "num_workers", "start_method",
    "test_dir", "train_dir", "val_dir", "val_scenes", "verify",
}  # fmt: skip
"""Settings that change where and how fast, but not what is learnt. The base is compared by its content (below), shards
and the position in them by the data module."""
_TRAINER = ("precision", "gradient_clip_val", "gradient_clip_algorithm", "accumulate_grad_batches")
_PRECISION, _COMPUTE = "trainer.precision", "trainer.compute_dtype"
_COMPUTED = {
    "32-true": "float32", "32": "float32", "bf16-mixed": "bfloat16", "bf16": "bfloat16", "16-mixed": "float16",
    "16": "float16",
}  # fmt: skip
"""By Lightning's name of a precision: what forward and backward compute in, over float32 weights."""


def base_of(module: Any) -> dict[str, str]:
    """Name and fingerprint of the model that a module starts from (its ``checkpoint``); empty if it has none.

    The fingerprint is a SHA-256 over ``config.json`` and, of each safetensors file, its name, size, header (names,
    precisions and shapes of all weights) and 16 blocks of 4 kB spread over it: cheap for any size, and another model
    of the same shape differs in it.
    """
    name = getattr(module, "checkpoint", None)
    if not isinstance(name, (str, Path)):
        return {}
    folder = _folder(str(name))
    return {"name": str(name), "sha256": fingerprint(folder) if folder else ""}


def fingerprint(folder: Path) -> str:
    """See :func:`base_of`."""
    sha = hashlib.sha256()
    config = folder / "config.json"
    sha.update(config.read_bytes() if config.is_file() else b"")
    for path in sorted(folder.glob("*.safetensors")):
        size = path.stat().st_size
        sha.update(f"{path.name} {size}\n".encode())
        with open(path, "rb") as file:
            length = int.from_bytes(file.read(8), "little")
            sha.update(file.read(min(length, size)))
            for block in range(_BLOCKS):
                file.seek(8 + length + block * max(0, size - 8 - length - _BLOCK) // (_BLOCKS - 1))
                sha.update(file.read(_BLOCK))
    return sha.hexdigest()


def check_base(saved: dict[str, str], now: dict[str, str]) -> None:
    """Refuse a checkpoint of another base, whose frozen weights are not in it.

    Raises:
        ValueError: both are known, and differ.
    """
    if saved.get("sha256") and now.get("sha256") and saved["sha256"] != now["sha256"]:
        raise ValueError(
            f"the checkpoint was trained from another base: {saved['name']} ({saved['sha256'][:12]}), and this is "
            f"{now['name']} ({now['sha256'][:12]}); give that one as the model's checkpoint"
        )


def settings_of(config: dict[str, Any]) -> dict[str, Any]:
    """What decides a training's result, flat, of its whole configuration: model, data, seed, some of the trainer."""
    trainer = config.get("trainer") or {}
    chosen = {
        "model": config.get("model"),
        "data": config.get("data"),
        "seed_everything": config.get("seed_everything"),
        "trainer": {**{name: trainer.get(name) for name in _TRAINER}, "compute_dtype": _compute_dtype(trainer)},
    }
    return {"cropl": __version__, **dict(_flat(chosen))}


def _compute_dtype(trainer: dict[str, Any]) -> str:
    """What forward and backward compute in: as the strategy says (fsdp2), or else the precision."""
    strategy, precision = trainer.get("strategy"), str(trainer.get("precision") or "32-true")
    given = (strategy.get("init_args") or {}).get("compute_dtype") if isinstance(strategy, dict) else None
    return str(given or _COMPUTED.get(precision, precision))


def check_settings(saved: dict[str, Any], now: dict[str, Any], allow: bool) -> bool:
    """Whether a checkpoint was written with other settings, see :func:`differences`.

    Args:
        saved: of the checkpoint.
        now: of this run.
        allow: log the differences, instead of refusing them.

    Raises:
        ValueError: they are not allowed.
    """
    if saved and now and saved["cropl"] != now["cropl"]:
        _log.warning("the checkpoint was written by cropl %s, and this is %s", saved["cropl"], now["cropl"])
    changes = differences(saved, now)
    if changes and not allow:
        raise ValueError(
            f"the checkpoint was written with other settings ({'; '.join(changes)}): set them back, or continue with "
            "these by --allow_change true"
        )
    if changes:
        _log.warning("continuing with other settings: %s", "; ".join(changes))
    return bool(changes)


def differences(saved: dict[str, Any], now: dict[str, Any]) -> list[str]:
    """Settings that a checkpoint was written with and that are others now, each as a text; none if one side is empty.

    A setting that one side does not know is nothing there, as in options that are null or a mapping. But where a side
    does not know the whole option, it was written by a version that did not have it: that stands for its default.
    """
    if not saved or not now:
        return []
    # The same computation has other precisions under other strategies; versions that noted no more had only that.
    skipped = {"cropl", _PRECISION if _COMPUTE in saved and _COMPUTE in now else _COMPUTE}
    found = []
    for name in {**now, **saved}:
        owner = f"{name.partition('.')[0]}.class_path"
        another = saved.get(owner) != now.get(owner) and not (name in saved and name in now)
        if name in skipped or another or IRRELEVANT.intersection(name.split(".")):
            continue
        before, after = (_setting(name, each, now.get(owner)) for each in (saved, now))
        if before != after:
            found.append(f"{name}: {before!r} in the checkpoint, {after!r} now")
    return found


def _setting(name: str, settings: dict[str, Any], class_path: str | None) -> Any:
    option = ".".join(name.split(".")[:3])  # model.init_args.NAME
    known = any(each == option or each.startswith(f"{option}.") for each in settings)
    return settings.get(name) if known or class_path is None else _defaults(class_path).get(name.partition(".")[2])


@lru_cache
def _defaults(class_path: str) -> dict[str, Any]:
    """Of a class's arguments, flat, with those that it hands on to the classes that it inherits from."""
    from jsonargparse import ArgumentParser

    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(recipe.load_object(class_path), "init_args", fail_untyped=False)
    return dict(_flat(parser.get_defaults().as_dict()))


def _flat(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            if key not in IRRELEVANT:
                yield from _flat(inner, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple)):
        yield name, [inner if isinstance(inner, (str, int, float, bool)) else str(inner) for inner in value]
    else:
        yield name, value if value is None or isinstance(value, (str, int, float, bool)) else str(value)


def _folder(name: str) -> Path | None:
    """Where a model lies: a folder, or the newest copy of a model of the Hugging Face hub in the local cache."""
    if Path(name).is_dir():
        return Path(name)
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    try:
        found = try_to_load_from_cache(name, "config.json")
    except HFValidationError:
        return None
    return Path(found).parent if isinstance(found, str) else None
