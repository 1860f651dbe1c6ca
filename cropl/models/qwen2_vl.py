"""Qwen2-VL (`Qwen2VLForConditionalGeneration`): the image as it is, on a grid of merged tokens that follows its shape.

The placeholder is expanded to rows x columns tokens, and `mm_token_type_ids` mark them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel, Qwen2VLForConditionalGeneration
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

from cropl.data.collate import Prepared
from cropl.grid import TokenGrid
from cropl.models.export import MAX_PIXELS_KEY
from cropl.models.frozen import frozen_without_graph
from cropl.models.inputs import VLMInputs, as_encoder_output, check_rows, normalised
from cropl.models.loading import load_config, load_image_processor, load_model, load_tokenizer
from cropl.models.qwen_processor import DEFAULT_MAX_PIXELS, QwenProcessor
from cropl.models.text import left_padded
from cropl.models.tower_view import Record, Watch, watch_merged
from cropl.models.vlm import VLM
from cropl.prompt import Rendered

if TYPE_CHECKING:
    from typing_extensions import Self


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
    prunable: ClassVar[bool] = True

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

    @classmethod
    def with_processor(cls, model: Any, processor: Any) -> Self:
        size = trained_max_pixels(model.config)
        return cls(model, QwenProcessor(processor.image_processor, processor.tokenizer, size))

    @property
    def max_pixels(self) -> int | None:
        """See `VLM`; None without a processor."""
        return None if self.processor is None else int(self.processor.size["longest_edge"])

    @property
    def side(self) -> int:
        """Rows and columns of tokens of the largest square picture."""
        patch = int(self.model.config.vision_config.patch_size)
        return math.isqrt(self._needs_processor().size["longest_edge"]) // (patch * self.merge)

    @property
    def merge(self) -> int:
        """Patches are merged `merge` x `merge` into one token."""
        return int(self.model.config.vision_config.spatial_merge_size)

    def token_grids(
        self, image_sizes: Sequence[tuple[int, int]], tensors: Mapping[str, Any] | None = None
    ) -> list[TokenGrid]:
        """As `VLM`'s. With `input_ids` among the tensors there is one size per row (or per group of rows that
        `generate` made of one), and a row without an image has a grid of one token; without, one size per image.

        Raises:
            ValueError: the tensors do not tell the grids, or images and sizes do not fit together.
        """
        given = {} if tensors is None else {key: value for key, value in tensors.items() if value is not None}
        shapes = self._shapes_of_rows(given, len(image_sizes)) if "input_ids" in given else self._shapes(given)
        if len(shapes) != len(image_sizes):
            raise ValueError(
                f"{len(shapes)} images in the batch and {len(image_sizes)} image sizes: give one per image"
            )
        return [TokenGrid.stretched(rows, cols, *size) for (rows, cols), size in zip(shapes, image_sizes)]

    def token_maps(self, image_sizes: Sequence[tuple[int, int]]) -> list[TokenGrid]:
        return [self.prepare.token_grid(*size) for size in image_sizes]

    def _shapes(self, tensors: Mapping[str, Any]) -> list[tuple[int, int]]:
        if "image_grid_thw" not in tensors:
            raise ValueError("Qwen2-VL's token grid follows the image: give the forward's image_grid_thw")
        return [(rows // self.merge, cols // self.merge) for _, rows, cols in tensors["image_grid_thw"].tolist()]

    def _shapes_of_rows(self, tensors: Mapping[str, Any], entries: int) -> list[tuple[int, int]]:
        """Rows and columns of tokens of each group's picture. `generate` encodes pictures first, and then hands on
        positions in place of `image_grid_thw`."""
        visual_BS = self.visual_mask(tensors["input_ids"])
        counts = visual_BS.sum(1).tolist()
        positions = tensors.get("position_ids")
        if "image_grid_thw" not in tensors and positions is not None and positions.ndim == 3:
            within = positions[-2:].masked_fill(~visual_BS, -1)
            size_B2 = (within.amax(-1) - within.where(visual_BS, within.amax(-1, keepdim=True)).amin(-1) + 1).T
            shapes = [(rows, cols) for count, (rows, cols) in zip(counts, size_B2.tolist()) if count]
        else:
            shapes = self._shapes(tensors)
        found = iter(shapes)
        per_row = [next(found, (0, 0)) if count else (1, 1) for count in counts]
        fits = all(rows * cols == count for count, (rows, cols) in zip(counts, per_row) if count)
        if not fits or next(found, None) is not None or len(counts) % entries:
            raise ValueError(
                f"{len(counts)} rows with {len(shapes)} images, and {entries} regions: one image per row is supported "
                "with regions; with several images in a row give keep, which covers all of its visual tokens"
            )
        return per_row[:: len(counts) // entries]

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
        tensors: dict[str, Any] = left_padded(processor.tokenizer, prompts, self.adds_bos, self.device)
        tensors["mm_token_type_ids"] = self.visual_mask(tensors["input_ids"]).int()
        tensors["image_grid_thw"] = pixels["image_grid_thw"].to(self.device)
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

    def watch_tower(self, record: Record) -> Watch:
        tower: Any = self.tower
        return watch_merged(tower, tower.blocks[max(0, len(tower.blocks) - 2)], self.merge, record)

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

    def token_grid(self, width: int, height: int) -> TokenGrid:
        """The tokens of an image of this size, by the image processor's rule for resizing.

        Raises:
            ValueError: one side is more than 200 times the other.
        """
        side = int(self.image_processor.patch_size) * self.merge
        resized = smart_resize(height, width, side, self.size["shortest_edge"], self.size["longest_edge"])
        return TokenGrid.stretched(resized[0] // side, resized[1] // side, width, height)

    def pixels(self, images: Sequence[Image.Image], **options: bool) -> dict[str, Tensor]:
        """`pixel_values` of all patches of all images in a row, and `image_grid_thw` (images, 3) in patches.

        Normalised, unless `options` of the image processor say else.
        """
        made = self.image_processor(images=list(images), size=self.size, return_tensors="pt", **options)
        return {"pixel_values": made["pixel_values"], "image_grid_thw": made["image_grid_thw"]}
