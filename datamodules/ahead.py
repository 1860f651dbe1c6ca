"""Loaders as the module in charge wants them: regions may be found ahead of the batches that need them."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import lightning as L


def localized_ahead(loader: Iterable[Any], trainer: L.Trainer | None) -> Any:
    """The loader, through the `localized_ahead` of the module that is tested or predicts, if it has one."""
    wrap = getattr(trainer.lightning_module if trainer is not None else None, "localized_ahead", None)
    return loader if wrap is None else wrap(loader)
