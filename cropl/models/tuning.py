"""Which weights of a model are trained: all but the tower, adapters and projector, or the projector alone."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, Literal, get_args

from cropl.errors import check_keys
from cropl.models.lora import add_lora
from cropl.models.vlm import VLM

Tune = Literal["full", "lora", "projector"]


def check_tuning(tune: str, lora: Mapping[str, Any] | None) -> None:
    """Refuse an unknown way to tune, and LoRA options that are unknown or that nothing would use.

    Raises:
        ValueError: the message names the key.
    """
    if tune not in get_args(Tune):
        raise ValueError(f"tune {tune!r}: must be one of {', '.join(get_args(Tune))}")
    if lora is not None and tune != "lora":
        raise ValueError(f"lora {dict(lora)} has no effect with tune {tune!r}: set tune to lora, or leave it out")
    check_keys(dict(lora or {}), list(inspect.signature(add_lora).parameters)[1:], "lora")


def choose_trained(
    vlm: VLM, tune: str = "full", lora: Mapping[str, Any] | None = None, freeze_projector: bool = False
) -> None:
    """Set which weights need gradients; the tower never does.

    Args:
        vlm: the model; for ``lora``, adapters are added to its decoder.
        tune: ``full`` trains projector (or merger) and decoder; ``lora`` the projector and adapters in the decoder;
            ``projector`` the projector alone.
        lora: arguments of :func:`~cropl.models.lora.add_lora`, for ``lora``.
        freeze_projector: leave the projector as it is.

    Raises:
        ValueError: see :func:`check_tuning` and :func:`~cropl.models.lora.add_lora`.
    """
    check_tuning(tune, lora)
    vlm.model.requires_grad_(tune == "full")
    if tune == "lora":
        add_lora(vlm, **(lora or {}))
    vlm.tower.requires_grad_(False)
    vlm.projector.requires_grad_(not freeze_projector)
