"""Models as the command line names them: `testbed:NAME` for those that ship with cropl, a folder, or a hub name."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING, Any

from cropl.errors import UsageError

if TYPE_CHECKING:
    from cropl.models.localizer import Localizer
    from cropl.models.vlm import VLM

TESTBED = "testbed:"


def checkpoint(name: str) -> str:
    """The folder of a `testbed:NAME` model; any other name as it is."""
    if not name:
        raise UsageError("the name of the model is empty: give a folder, a hub name, or testbed:llava")
    from cropl.testbed import weights

    return weights.resolve(name)


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
    load = load_vlm if family is None else own_family(family).from_pretrained  # its import may register the config
    options = _options(device, dtype, attention)
    if protocol is not None:
        if (kind := load_config(checkpoint(name)).model_type) != "llava_next":
            raise UsageError(f"protocol {protocol!r}: {name} is a {kind} model, and only LLaVA-NeXT has protocols")
        options["protocol"] = protocol
    if system is not None:
        if (kind := load_config(checkpoint(name)).model_type) not in ("llava", "llava_next"):
            raise UsageError(f"system {system}: {name} is a {kind} model, and only LLaVA has a system sentence")
        options["system"] = system
    try:
        return load(checkpoint(name), **options)
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
