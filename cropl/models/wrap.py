"""A stock model of `transformers`, with its own processor, as a VLM."""

from __future__ import annotations

from typing import Any

from cropl.models.vlm import VLM, as_vlm, family


def wrap(model: Any, processor: Any = None) -> VLM:
    """The VLM of a model and the processor that `AutoProcessor` gives for its checkpoint; a VLM stays what it is.

    Raises:
        ValueError: the model is of no supported family, its processor is missing, or is given where a VLM has one.
    """
    if isinstance(model, VLM):
        if processor is not None:
            raise ValueError("this model has its processor already: leave `processor` out")
        return model
    bare = as_vlm(model)
    if processor is None:
        raise ValueError(
            f"{type(model).__name__} comes without its processor: give the one of "
            "`AutoProcessor.from_pretrained`, or load both with `load_vlm`"
        )
    return family(bare.model.config.model_type).with_processor(model, processor)
