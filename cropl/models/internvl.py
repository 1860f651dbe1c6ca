"""InternVL (`InternVLForConditionalGeneration`): tiles in the shape of the image, then a thumbnail of it.

The image is stretched onto up to twelve tiles, whose tokens the model gets tile by tile, and those of the thumbnail
last, 2 x 2 patches to a token (pixel shuffle). `InternVLProcessor` cannot be built without torchvision (its video
processor needs it), so the image processor and the tokenizer are composed here. A family for inference: training says
what is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image
from torch import Tensor
from transformers import InternVLForConditionalGeneration, PreTrainedModel
from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

from cropl.grid import TokenGrid
from cropl.models.inputs import VLMInputs, as_encoder_output, check_rows
from cropl.models.loading import load_image_processor, load_model, load_tokenizer
from cropl.models.text import left_padded, special_tokens
from cropl.models.vlm import VLM
from cropl.prompt import clean_question
from cropl.tiling import TileGrid, TokenMap

# B images, P crops of all images in a row, T tokens of a crop, V visual tokens of an image, D width of the decoder


class InternProcessor:
    """The image processor and the tokenizer of an InternVL checkpoint.

    Args:
        image_processor: a `GotOcr2ImageProcessor` (PIL).
        tokenizer: the checkpoint's, with its chat template and the names of its image tokens.

    Raises:
        ValueError: the tokenizer has none of these.
    """

    def __init__(self, image_processor: Any, tokenizer: Any) -> None:
        self.image_processor, self.tokenizer = image_processor, tokenizer
        names = ("start_image_token", "context_image_token", "end_image_token")
        missing = [name for name in ("chat_template", *names) if not getattr(tokenizer, name, None)]
        if missing:
            raise ValueError(
                f"the tokenizer has no {missing[0]}: load that of an InternVL checkpoint (names end in -hf)"
            )
        self.start, self.image_token, self.end = (str(getattr(tokenizer, name)) for name in names)

    def prompt(self, question: str, tokens: int) -> str:
        """The chat prompt of one image of so many visual tokens and one question, up to where the answer starts."""
        text = clean_question(question, special_tokens(self.tokenizer))
        message = {"role": "user", "content": [{"type": "image"}, {"type": "text", "text": text}]}
        prompt: str = self.tokenizer.apply_chat_template([message], tokenize=False, add_generation_prompt=True)
        return prompt.replace(self.image_token, f"{self.start}{self.image_token * tokens}{self.end}", 1)

    def crops(self, width: int, height: int) -> tuple[int, int]:
        """Columns and rows of the tiles that an image of this size is stretched onto."""
        images = self.image_processor
        tile = (images.size["height"], images.size["width"])
        cols, rows = get_optimal_tiled_canvas((height, width), tile, images.min_patches, images.max_patches)
        return cols, rows

    def batch_decode(self, ids: Tensor, skip_special_tokens: bool = True) -> list[str]:
        texts: list[str] = self.tokenizer.batch_decode(ids, skip_special_tokens=skip_special_tokens)
        return texts


class InternVLVLM(VLM):
    """InternVL with any of its language models.

    Args:
        model: an `InternVLForConditionalGeneration`.
        processor: an `InternProcessor`. It knows how many tiles an image has: without it, pruning a model that one
            feeds oneself takes regions with `grids` alone, not with `image_sizes`, or `keep`.

    Raises:
        ValueError: the processor makes tiles of another size than the model's.
    """

    model_class: ClassVar[type[PreTrainedModel]] = InternVLForConditionalGeneration
    prunable: ClassVar[bool] = True
    class_token: ClassVar[bool] = True

    def __init__(self, model: Any, processor: InternProcessor | None = None) -> None:
        super().__init__(model, processor)
        vision = model.config.vision_config
        self.tile, self.patch = int(vision.image_size[0]), int(vision.patch_size[0])
        self.side = round(self.tile // self.patch * model.config.downsample_ratio)
        size = None if processor is None else processor.image_processor.size
        if size is not None and (size["height"], size["width"]) != (self.tile, self.tile):
            raise ValueError(
                f"the processor's tiles are {size}, the model's {self.tile}: load both from one checkpoint"
            )

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        **model_options: Any,
    ) -> InternVLVLM:
        model = load_model(cls.model_class, name_or_path, dtype, device, **model_options)
        return cls(model, InternProcessor(load_image_processor(name_or_path), load_tokenizer(name_or_path)))

    @classmethod
    def with_processor(cls, model: Any, processor: Any) -> InternVLVLM:
        return cls(model, InternProcessor(processor.image_processor, processor.tokenizer))

    def token_grids(
        self, image_sizes: Sequence[tuple[int, int]], tensors: Mapping[str, Any] | None = None
    ) -> list[TokenMap]:
        return [self.token_map(*size) for size in image_sizes]

    def token_map(self, width: int, height: int) -> TokenMap:
        """Where the tokens of an image of this size lie: those of the tiles, then those of the thumbnail."""
        cols, rows = self._needs_processor().crops(width, height)
        whole = TokenGrid.stretched(self.side, self.side, width, height)
        if cols * rows == 1:
            return TokenMap((whole,), width, height)
        tiles = TileGrid(
            rows * self.side, cols * self.side, 0, 0, width, height, width, height, tile=self.side
        )  # fmt: skip
        return TokenMap((tiles, whole), width, height, crops=cols * rows + 1)

    def inputs(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        features: Sequence[Tensor] | None = None,
    ) -> VLMInputs:
        check_rows(images, questions, features)
        processor: InternProcessor = self._needs_processor()
        grids = self.token_grids([image.size for image in images])
        prompts = [processor.prompt(question, grid.num_tokens) for question, grid in zip(questions, grids)]
        tensors: dict[str, Any] = left_padded(processor.tokenizer, prompts, self.adds_bos, self.device)
        if features is None:
            tensors["pixel_values"] = torch.cat(self._pixels(images))
        else:
            outputs = as_encoder_output(features)
            # This model wants the crops of all images in one tensor (P, T, D).
            outputs["image"].pooler_output = torch.cat(list(features)).unflatten(0, (-1, self.side**2))
            tensors["mm_encoder_outputs"] = outputs
        return VLMInputs(tensors, grids)

    @torch.inference_mode()
    def encode_images(self, images: Sequence[Image.Image]) -> list[Tensor]:
        crops = self._pixels(images)
        feature_PTD = self.model.get_image_features(pixel_values=torch.cat(crops)).pooler_output
        return [part.flatten(0, 1) for part in feature_PTD.split([len(one) for one in crops])]

    def save_processor(self, folder: str | Path) -> None:
        processor: InternProcessor = self._needs_processor()
        processor.image_processor.save_pretrained(folder)
        processor.tokenizer.save_pretrained(folder)

    def _pixels(self, images: Sequence[Image.Image]) -> list[Tensor]:
        """Crops (P_i, 3, tile, tile) of each image, tiles first."""
        made = self._needs_processor().image_processor(
            images=[image.convert("RGB") for image in images], crop_to_patches=True, return_tensors="pt"
        )
        pixels = made["pixel_values"].to(self.device, self.model.dtype)
        return list(pixels.split([int(count) for count in made["num_patches"]]))
