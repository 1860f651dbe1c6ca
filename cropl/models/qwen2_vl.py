"""Qwen2-VL (`Qwen2VLForConditionalGeneration`): the image as it is, on a grid of merged tokens that follows its shape.

`Qwen2VLProcessor` cannot be built without torchvision (its video processor needs it), so the image processor and the
tokenizer are composed here: the placeholder is expanded to rows x columns tokens, and `mm_token_type_ids` mark them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel, Qwen2VLForConditionalGeneration

from cropl.data.collate import Prepared
from cropl.grid import TokenGrid
from cropl.models.export import MAX_PIXELS_KEY
from cropl.models.frozen import frozen_without_graph
from cropl.models.inputs import VLMInputs, as_encoder_output, check_rows, normalised
from cropl.models.loading import load_config, load_image_processor, load_model, load_tokenizer
from cropl.models.vlm import VLM, special_tokens
from cropl.prompt import Rendered, Span, clean_question, clean_text

if TYPE_CHECKING:
    from typing_extensions import Self

DEFAULT_MAX_PIXELS = 448 * 448
"""The paper does not say at which size its localizer looks; far above this a 2B one costs more than it saves a 7B."""


class QwenProcessor:
    """The image processor and the tokenizer of a Qwen2-VL checkpoint.

    Args:
        image_processor: a `Qwen2VLImageProcessor` (PIL).
        tokenizer: the checkpoint's, with its chat template.
        max_pixels: upper bound of the resized image's area; the checkpoint's own where that is lower.
    """

    def __init__(self, image_processor: Any, tokenizer: Any, max_pixels: int = DEFAULT_MAX_PIXELS) -> None:
        self.image_processor, self.tokenizer = image_processor, tokenizer
        smallest, largest = image_processor.size["shortest_edge"], image_processor.size["longest_edge"]
        if max_pixels < smallest:
            raise ValueError(f"max_pixels={max_pixels} is below the checkpoint's least image area {smallest}")
        self.size = {"shortest_edge": smallest, "longest_edge": min(largest, max_pixels)}

    def prompt(self, question: str) -> str:
        """The chat prompt of one image and one question, up to where the answer starts."""
        text = clean_question(question, special_tokens(self.tokenizer))
        return self._chat([_message("user", text, image=True)], True)

    def conversation(self, turns: Sequence[tuple[str, str]], image: bool, clean: bool = True) -> Rendered:
        """A conversation in the chat template; an answer ends with the end-of-turn token, without what follows it.

        Raises:
            ValueError: a question is empty, or the template writes an earlier turn in another way once others follow,
                so that what is trained would not be what is asked at inference.
        """
        special, end = special_tokens(self.tokenizer), self.tokenizer.eos_token
        messages: list[dict[str, Any]] = []
        answers: list[Span] = []
        text = ""
        for question, answer in turns:
            asked, told = clean_question(question, special), clean_text(answer, special) if clean else answer
            messages.append(_message("user", asked, image=image and not answers))
            prompt = self._chat(messages, True)
            messages.append(_message("assistant", told))
            whole = self._chat(messages, False)
            if not prompt.startswith(text) or not whole.startswith(f"{prompt}{told}{end}"):
                raise ValueError(
                    f"the tokenizer's chat template does not write answer {len(answers) + 1} as its prompt, the answer "
                    f"and {end!r}, with all that precedes left as it was: it cannot be trained on conversations"
                )
            answers.append((len(prompt), len(f"{prompt}{told}{end}")))
            text = whole
        start = self._chat([_message("user", "\0", image)], True).index("\0")
        return Rendered(text, (start, start + len(clean_question(turns[0][0], special))), answers)

    def _chat(self, messages: list[dict[str, Any]], ask: bool) -> str:
        text: str = self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=ask)
        return text

    def batch_decode(self, ids: Tensor, skip_special_tokens: bool = True) -> list[str]:
        texts: list[str] = self.tokenizer.batch_decode(ids, skip_special_tokens=skip_special_tokens)
        return texts


def _message(role: str, text: str, image: bool = False) -> dict[str, Any]:
    content: list[dict[str, str]] = [{"type": "text", "text": text}]
    return {"role": role, "content": [{"type": "image"}, *content] if image else content}


def trained_max_pixels(config: Any) -> int:
    """The size that a checkpoint's config asks for; `DEFAULT_MAX_PIXELS` where it says nothing.

    Raises:
        ValueError: what it asks for is none.
    """
    size = getattr(config, MAX_PIXELS_KEY, None)
    if size is None:
        return DEFAULT_MAX_PIXELS
    if type(size) is not int or size < 1:
        raise ValueError(f"{MAX_PIXELS_KEY} in the checkpoint's config.json is {size!r}: give a number of pixels")
    return size


class Qwen2VLVLM(VLM):
    """Qwen2-VL with its merged, dynamic token grid."""

    model_class: ClassVar[type[PreTrainedModel]] = Qwen2VLForConditionalGeneration

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        max_pixels: int | None = None,
        **model_options: Any,
    ) -> Self:
        """As `VLM.from_pretrained`; `max_pixels` as for `QwenProcessor`, None as the checkpoint was trained.

        Raises:
            ValueError: it is another family's checkpoint, or its config names no such size.
        """
        config: Any = cls.model_class.config_class
        model_type, needed = load_config(name_or_path).model_type, config.model_type
        if model_type != needed:
            raise ValueError(f"{name_or_path}: this is a {model_type!r} model, and a {needed!r} one is needed")
        model = load_model(cls.model_class, name_or_path, dtype, device, **model_options)
        size = trained_max_pixels(model.config) if max_pixels is None else max_pixels
        return cls(model, QwenProcessor(load_image_processor(name_or_path), load_tokenizer(name_or_path), size))

    @property
    def max_pixels(self) -> int | None:
        """See `VLM`; None without a processor."""
        return None if self.processor is None else int(self.processor.size["longest_edge"])

    @property
    def merge(self) -> int:
        """Patches are merged `merge` x `merge` into one token."""
        return int(self.model.config.vision_config.spatial_merge_size)

    def token_grids(
        self, image_sizes: Sequence[tuple[int, int]], tensors: Mapping[str, Any] | None = None
    ) -> list[TokenGrid]:
        if tensors is None or "image_grid_thw" not in tensors:
            raise ValueError("Qwen2-VL's token grid follows the image: give the forward's image_grid_thw")
        grids = [(int(h) // self.merge, int(w) // self.merge) for _, h, w in tensors["image_grid_thw"]]
        if len(grids) != len(image_sizes):
            raise ValueError(f"{len(grids)} images in the batch and {len(image_sizes)} image sizes: give one per image")
        return [TokenGrid.stretched(rows, cols, *size) for (rows, cols), size in zip(grids, image_sizes)]

    def inputs(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        features: Sequence[Tensor] | None = None,
    ) -> VLMInputs:
        check_rows(images, questions, features)
        processor: QwenProcessor = self._needs_processor()
        pixels = self.prepare.pixels(images)
        grids = self.token_grids([image.size for image in images], pixels)
        placeholder = processor.tokenizer.convert_ids_to_tokens(self.image_token_id)
        prompts = [
            processor.prompt(question).replace(placeholder, placeholder * grid.num_tokens, 1)
            for question, grid in zip(questions, grids)
        ]
        text = processor.tokenizer(
            prompts, padding=True, padding_side="left", add_special_tokens=False, return_tensors="pt"
        )
        tensors: dict[str, Any] = {
            "input_ids": text["input_ids"].to(self.device),
            "attention_mask": text["attention_mask"].to(self.device),
            "mm_token_type_ids": self.visual_mask(text["input_ids"]).int().to(self.device),
            "image_grid_thw": pixels["image_grid_thw"].to(self.device),
        }
        if features is None:
            tensors["pixel_values"] = pixels["pixel_values"].to(self.device, self.model.dtype)
        else:
            tensors["mm_encoder_outputs"] = as_encoder_output(features)
        return VLMInputs(tensors, grids)

    @torch.inference_mode()
    def encode_images(self, images: Sequence[Image.Image]) -> list[Tensor]:
        pixels = self.prepare.pixels(images)
        values = pixels["pixel_values"].to(self.device, self.model.dtype)
        return list(self.model.model.get_image_features(values, pixels["image_grid_thw"].to(self.device)).pooler_output)

    @property
    def tower(self) -> nn.Module:
        tower: nn.Module = self.model.model.visual
        return tower

    @property
    def projector(self) -> nn.Module:
        merger: nn.Module = self.model.model.visual.merger
        return merger

    @property
    def shard_units(self) -> list[nn.Module]:
        return list(self.decoder.layers)

    def save_processor(self, folder: str | Path) -> None:
        processor: QwenProcessor = self._needs_processor()
        processor.image_processor.save_pretrained(folder)
        processor.tokenizer.save_pretrained(folder)

    @property
    def prepare(self) -> MergedPatches:
        processor: QwenProcessor = self._needs_processor()
        return MergedPatches(processor.image_processor, processor.size, self.merge)

    def encode_prepared(self, pixels: Sequence[Tensor], patches: Sequence[tuple[int, int]]) -> list[Tensor]:
        thw = torch.tensor([[1, *grid] for grid in patches], device=self.device)
        placed = torch.cat(list(pixels)).to(self.device)
        if placed.dtype == torch.uint8:
            frames = int(self.model.config.vision_config.temporal_patch_size)
            once_PCE = normalised(placed.unflatten(1, (3, -1)), self._needs_processor().image_processor)
            placed = once_PCE[:, :, None].expand(-1, -1, frames, -1).flatten(1)
        with frozen_without_graph(self.tower, self.projector):
            return list(self.model.model.get_image_features(placed.to(self.model.dtype), thw).pooler_output)

    def prompt_ids(self, question: str) -> list[int]:
        return list(self.tokenizer(self.processor.prompt(question), add_special_tokens=False)["input_ids"])

    def render(self, turns: Sequence[tuple[str, str]], image: bool, clean: bool = True) -> Rendered:
        processor: QwenProcessor = self._needs_processor()
        return processor.conversation(turns, image, clean)

    def visual_positions(self, start: int, grid: tuple[int, int], cell_V: Tensor) -> Tensor:
        columns = grid[1]
        return start + torch.stack([torch.zeros_like(cell_V), cell_V // columns, cell_V % columns])


@dataclass(frozen=True)
class MergedPatches:
    """Prepares pictures for Qwen2-VL's tower: resized to whole merged patches, flattened.

    Attributes:
        image_processor: the checkpoint's.
        size: its bounds on the resized image's area.
        merge: patches are merged `merge` x `merge` into one token.
    """

    image_processor: Any
    size: dict[str, int]
    merge: int

    def __call__(self, image: Image.Image) -> Prepared:
        made = self.pixels([image], do_rescale=False, do_normalize=False)
        _, rows, columns = made["image_grid_thw"][0].tolist()
        grid = TokenGrid.stretched(rows // self.merge, columns // self.merge, *image.size)
        # A still picture fills every frame of a temporal patch: one of them is enough on the way.
        frames = made["pixel_values"].unflatten(1, (3, self.image_processor.temporal_patch_size, -1))
        return Prepared(frames[:, :, 0].flatten(1).to(torch.uint8), (rows, columns), grid)

    def pixels(self, images: Sequence[Image.Image], **options: bool) -> dict[str, Tensor]:
        """`pixel_values` of all patches of all images in a row, and `image_grid_thw` (images, 3) in patches.

        Normalised, unless `options` of the image processor say else.
        """
        made = self.image_processor(images=list(images), size=self.size, return_tensors="pt", **options)
        return {"pixel_values": made["pixel_values"], "image_grid_thw": made["image_grid_thw"]}
