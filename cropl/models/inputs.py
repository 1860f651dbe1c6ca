"""A batch of prompts and images as a model takes it, with its geometry."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers.modeling_outputs import BaseModelOutputWithPooling

from cropl.tiling import Tokens


@dataclass(frozen=True)
class VLMInputs:
    """A batch for `model(**inputs.kwargs())` or `model.generate(**inputs.kwargs())`, with its geometry.

    Attributes:
        tensors: keyword arguments of the model (`input_ids` BS, `attention_mask` BS, `pixel_values`, ... or, for images
            that were encoded before, `mm_encoder_outputs`).
        grids: where each row's visual tokens lie over its image.
    """

    tensors: dict[str, Any]
    grids: Sequence[Tokens]

    def __len__(self) -> int:
        return len(self.grids)

    @property
    def image_sizes(self) -> list[tuple[int, int]]:
        """`(width, height)` of each row's image, in pixels."""
        return [(grid.image_width, grid.image_height) for grid in self.grids]

    def kwargs(self) -> dict[str, Any]:
        """A copy of `tensors` for one call: beam search expands the image features of `mm_encoder_outputs` in place."""
        copied = dict(self.tensors)
        features = copied.get("mm_encoder_outputs")
        if features is not None:
            copied["mm_encoder_outputs"] = {kind: type(output)(**output) for kind, output in features.items()}
        return copied

    def to(self, device: torch.device | str) -> VLMInputs:
        """The same batch on another device."""

        def move(value: Any) -> Any:
            if isinstance(value, Tensor):
                return value.to(device)
            if isinstance(value, Mapping):
                moved = {key: move(item) for key, item in value.items()}
                return moved if type(value) is dict else type(value)(**moved)
            return [move(item) for item in value] if isinstance(value, list) else value

        return replace(self, tensors=move(self.tensors))


def normalised(pixels: Tensor, image_processor: Any) -> Tensor:
    """Pixels `(..., 3, n)` of 0..255 as float32, with the statistics that an image processor would have used.

    Prepared pictures travel from the loader's workers as bytes, a quarter of what floats weigh, and are normalised
    where the model is.
    """
    mean = torch.tensor(image_processor.image_mean, device=pixels.device)[:, None]
    std = torch.tensor(image_processor.image_std, device=pixels.device)[:, None]
    return (pixels.float() * image_processor.rescale_factor - mean) / std


def check_rows(images: Sequence[Image.Image], questions: Sequence[str], features: Sequence[Tensor] | None) -> None:
    """ValueError unless there is one image and one question per row, and one feature tensor where any are given."""
    if isinstance(questions, str) or isinstance(images, Image.Image):
        raise ValueError("one image or one question by itself: give a list of images and a list of questions")
    if len(images) != len(questions):
        raise ValueError(f"{len(images)} images and {len(questions)} questions: give one image per question")
    if not images:
        raise ValueError("no images: give at least one image and one question")
    if features is not None and len(features) != len(images):
        raise ValueError(f"{len(features)} image features for {len(images)} images: give one per row")


def as_encoder_output(features: Sequence[Tensor]) -> dict[str, BaseModelOutputWithPooling]:
    """Features `(V_i, D)` per image, as `model(mm_encoder_outputs=...)` takes them."""
    per_image: Any = list(features)  # a list in practice, whatever the annotation of `transformers` says
    return {"image": BaseModelOutputWithPooling(pooler_output=per_image)}
