"""What connects cropl to other tools. Each needs an extra of its own, and is imported only when it is asked for."""

from __future__ import annotations

from typing import Any


def lmms_models() -> Any:
    """The entry point `lmms_eval.models`: tells lmms-eval of `--model cropl`, and loads no more than that takes."""
    from lmms_eval.models.registry_v2 import ModelManifest

    return ModelManifest(model_id="cropl", simple_class_path="cropl.integrations.lmms.CropLmms")
