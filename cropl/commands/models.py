"""Models as the command line names them: `testbed:NAME` for those that ship with cropl, a folder, or a hub name."""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cropl.errors import UsageError

if TYPE_CHECKING:
    from cropl.models.localizer import Localizer
    from cropl.models.vlm import VLM

TESTBED = "testbed:"
CONFIG = "config.json"
OF_FAMILIES = {
    "protocol": (("llava_next",), "LLaVA-NeXT has protocols"),
    "system": (("llava", "llava_next"), "LLaVA has a system sentence"),
}
"""Arguments of some families alone: their model types, and why."""


def checkpoint(name: str) -> str:
    """The folder of a `testbed:NAME` model; any other name as it is. UsageError for a path without a model."""
    if not name:
        raise UsageError("the name of the model is empty: give a folder, a hub name, or testbed:llava")
    from cropl.testbed import weights

    found = weights.resolve(name)
    folder = Path(found).expanduser()
    if not folder.is_dir():
        if is_path(name):
            raise UsageError(f"{name}: no such folder of a model")
    elif not (folder / CONFIG).is_file() and (folder / "export" / CONFIG).is_file():
        raise UsageError(f"{name} is the folder of a training: its model is {name.rstrip('/')}/export")
    elif not (folder / CONFIG).is_file():
        raise UsageError(f"{name} holds no model (no {CONFIG}); `cropl export` makes one of a checkpoint of a training")
    return found


def is_path(name: str) -> bool:
    """Whether a name can be no hub's, which are OWNER/NAME."""
    return name.startswith((".", "/", "~")) or name.count("/") != 1


def _options(device: str | None, dtype: str | None, attention: str | None = None) -> dict[str, Any]:
    import torch

    options: dict[str, Any] = {}
    if device is not None:
        try:
            torch.empty(0, device=device)
        except (RuntimeError, AssertionError) as error:
            raise UsageError(f"device {device!r} cannot be used: {str(error).splitlines()[0]}") from None
        options["device"] = device
    if dtype is not None:
        known = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16, "auto": "auto"}
        if dtype not in known:
            raise UsageError(f"dtype {dtype!r} must be one of {', '.join(known)}")
        options["dtype"] = known[dtype]
    if attention is not None:
        options["attn_implementation"] = attention
    return options


def open_vlm(
    name: str,
    device: str | None = None,
    dtype: str | None = None,
    attention: str | None = None,
    protocol: str | None = None,
    system: bool | None = None,
    family: str | None = None,
) -> VLM:
    """Load the model that answers; `protocol` is LLaVA-NeXT's, and `system` (its system sentence) of both LLaVAs.

    `family` is the class path of another `VLM` than the one that the checkpoint's model type stands for.
    """
    from cropl.models.loading import load_config
    from cropl.models.vlm import load_vlm

    _quiet(name)
    own = None if family is None else own_family(family)  # its import may register the config
    load = load_vlm if own is None else own.from_pretrained
    options = _options(device, dtype, attention)
    folder = checkpoint(name)
    for key, value in (("protocol", protocol), ("system", system)):
        if value is None:
            continue
        if own is not None and key not in inspect.signature(own.__init__).parameters:
            raise UsageError(f"{key} {value!r}: {family} takes none")
        kinds, why = OF_FAMILIES[key]
        if own is None and (kind := load_config(folder).model_type) not in kinds:
            raise UsageError(f"{key} {value!r}: {name} is a {kind} model, and only {why}")
        options[key] = value
    try:
        return load(folder, **options)
    except ValueError as error:
        if protocol is None or "protocol" not in str(error):
            raise
        raise UsageError(str(error)) from None


def own_family(class_path: str) -> type[VLM]:
    """The `VLM` class with a dotted path; UsageError says what is wrong with it."""
    from cropl import recipe
    from cropl.models.vlm import VLM

    found = recipe.load_object(class_path)
    if not isinstance(found, type) or not issubclass(found, VLM):
        raise UsageError(f"family {class_path!r} is no VLM: name a subclass of cropl.models.vlm.VLM")
    lacks = sorted(getattr(found, "__abstractmethods__", ())) + ["model_class"] * (not hasattr(found, "model_class"))
    if lacks:
        raise UsageError(f"family {class_path!r} does not define {', '.join(lacks)}")
    return found


def open_localizer(
    name: str, device: str | None = None, dtype: str | None = None, max_pixels: int | None = None
) -> Localizer:
    """Load a trained localizer; `max_pixels` bounds the area of its input, None takes the checkpoint's own."""
    from cropl.models.loading import load_config
    from cropl.models.localizer import FAMILIES, Localizer

    _quiet(name)
    folder, options = checkpoint(name), _options(device, dtype)
    family = load_config(folder).model_type
    if family not in FAMILIES:
        raise UsageError(f"localizer {name}: is a {family} checkpoint; localizers are fine-tuned Qwen2-VL models")
    return Localizer.from_pretrained(folder, max_pixels=max_pixels, **options)


def _quiet(name: str) -> None:
    """No advice from transformers between our own lines; its errors still come as exceptions.

    On a terminal its progress bars stay, for models that take their time.
    """
    from transformers.utils import logging

    logging.set_verbosity_error()
    if name.startswith(TESTBED) or not sys.stderr.isatty():
        logging.disable_progress_bar()
    else:
        logging.enable_progress_bar()


def need_prunable(vlm: VLM, name: str) -> None:
    """UsageError for a model that the decoder surgery does not know."""
    from cropl.pruning.base import NotSupportedError
    from cropl.pruning.checks import check_model

    try:
        check_model(vlm)
    except NotSupportedError as error:
        raise UsageError(f"{name}: {error}; use --method dense") from None
