"""LLaVA-1.5 (`LlavaForConditionalGeneration`): the image in the middle of a square, a fixed grid of visual tokens.

The checkpoint's own processor is used for the tokenizer and the pixel statistics only. Its default geometry (resize the
shorter edge, crop the centre) loses the sides of every non-square image, and with them regions, so the image is padded
to a square with the mean colour instead, as LLaVA-1.5 was trained, and then resized as a whole.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from transformers import LlavaForConditionalGeneration, PreTrainedModel

from cropl.data.collate import Prepared
from cropl.grid import TokenGrid
from cropl.models.clip_llava import ClipLlavaVLM
from cropl.models.frozen import frozen_without_graph
from cropl.models.inputs import VLMInputs, as_encoder_output, check_rows, normalised
from cropl.models.text import left_padded, special_tokens
from cropl.models.tower_view import Record, Watch, clip_layer, each_an_image, watch_class_token
from cropl.prompt import Rendered, llava_prompt, vicuna


class LlavaVLM(ClipLlavaVLM):
    """LLaVA-1.5 with any of its language models.

    Args:
        model: a `LlavaForConditionalGeneration`.
        processor: its `LlavaProcessor`; not needed for pruning a model that one feeds oneself.
        system: put the `vicuna_v1` system sentence into prompts (LLaVA's own evaluation does, Hugging Face's template
            does not).

    Raises:
        ValueError: the model's visual tokens are no plain grid, or the processor belongs to another model.
    """

    model_class: ClassVar[type[PreTrainedModel]] = LlavaForConditionalGeneration

    def __init__(self, model: Any, processor: Any = None, system: bool = False) -> None:
        super().__init__(model, processor, system)
        vision = model.config.vision_config
        self.image_size = int(vision.image_size)
        self.side = self.image_size // int(vision.patch_size)

    def token_grids(
        self, image_sizes: Sequence[tuple[int, int]], tensors: Mapping[str, Any] | None = None
    ) -> list[TokenGrid]:
        return [TokenGrid.padded_square(self.side, width, height) for width, height in image_sizes]

    def inputs(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        features: Sequence[Tensor] | None = None,
    ) -> VLMInputs:
        check_rows(images, questions, features)
        processor = self._needs_processor()
        grids = self.token_grids([image.size for image in images])
        placeholders = processor.image_token * (self.side * self.side)
        prompts = [self._prompt(question).replace("<image>", placeholders, 1) for question in questions]
        tensors: dict[str, Any] = left_padded(processor.tokenizer, prompts, self.adds_bos, self.device)
        if features is None:
            tensors["pixel_values"] = self.pixel_values(images)
        else:
            tensors["mm_encoder_outputs"] = as_encoder_output(features)
        return VLMInputs(tensors, grids)

    @torch.inference_mode()
    def encode_images(self, images: Sequence[Image.Image]) -> list[Tensor]:
        return list(self.model.get_image_features(pixel_values=self.pixel_values(images)).pooler_output)

    def pixel_values(self, images: Sequence[Image.Image]) -> Tensor:
        """Pixels `(B, 3, image_size, image_size)` of images padded to a square with the processor's mean colour."""
        weight = next(self.tower.parameters())
        return self.prepare.pixels(images).to(weight.device, weight.dtype)

    def watch_tower(self, record: Record) -> Watch:
        layer = clip_layer(self.tower, self.model.config.vision_feature_layer)
        return watch_class_token(layer, self.projector, each_an_image(record))

    @property
    def prepare(self) -> PaddedSquare:
        return PaddedSquare(self._needs_processor().image_processor, self.image_size, self.side)

    def encode_prepared(self, pixels: Sequence[Tensor], patches: Sequence[tuple[int, int]]) -> list[Tensor]:
        weight = next(self.tower.parameters())
        placed = torch.stack(list(pixels)).to(weight.device)
        if placed.dtype == torch.uint8:
            placed = normalised(placed.flatten(2), self._needs_processor().image_processor).view(placed.shape)
        with frozen_without_graph(self.tower, self.projector):
            return list(self.model.model.get_image_features(placed.to(weight.dtype)).pooler_output)

    def render(self, turns: Sequence[tuple[str, str]], image: bool, clean: bool = True) -> Rendered:
        special, end = special_tokens(self.tokenizer), self.tokenizer.eos_token
        return vicuna(turns, image, self.system, special, end, clean)

    def _prompt(self, question: str) -> str:
        return llava_prompt(question, self.system, special_tokens(self.tokenizer))


@dataclass(frozen=True)
class PaddedSquare:
    """Prepares pictures for a CLIP tower: padded to a square with the mean colour, then resized as a whole.

    Attributes:
        image_processor: the checkpoint's, for its statistics.
        size: side of the square in pixels.
        side: side of the square in patches.
    """

    image_processor: Any
    size: int
    side: int

    def __call__(self, image: Image.Image) -> Prepared:
        pixels = self.pixels([image], do_rescale=False, do_normalize=False)[0].to(torch.uint8)
        return Prepared(pixels, (self.side, self.side), TokenGrid.padded_square(self.side, *image.size))

    def pixels(self, images: Sequence[Image.Image], **options: bool) -> Tensor:
        """Pixels `(B, 3, size, size)`, normalised unless `options` of the image processor say else."""
        colour = tuple(int(mean * 255) for mean in self.image_processor.image_mean)
        size = {"height": self.size, "width": self.size}
        squares = [pad_to_square(image, colour) for image in images]
        made = self.image_processor(images=squares, size=size, do_center_crop=False, return_tensors="pt", **options)
        pixels: Tensor = made["pixel_values"]
        return pixels


def pad_to_square(image: Image.Image, colour: tuple[int, ...]) -> Image.Image:
    """The image in the middle of a square of its longer side (LLaVA's `expand2square`); odd rests go right or down."""
    image = image.convert("RGB")
    width, height = image.size
    side = max(width, height)
    if width == height:
        return image
    square = Image.new("RGB", (side, side), colour)
    square.paste(image, ((side - width) // 2, (side - height) // 2))
    return square
