"""LLaVA-NeXT (`LlavaNextForConditionalGeneration`): a view of the whole image, and tiles of it at a higher resolution.

Two protocols, which result rows name. `anyres` is what Hugging Face computes: as many tiles as suit the image's shape,
the padding around it cut away again, a newline token behind each row of tokens. `fixed` is that of published tables:
2 x 2 tiles of every image, put together to one grid with its padding and without newlines, as LLaVA's merge type
`spatial` does, so that each image has 5 x side x side tokens (2880). The model itself is never changed: under `fixed`
it is given its visual tokens ready-made.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar, get_args

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import LlavaNextForConditionalGeneration, PreTrainedModel

from cropl.models.anyres import Crops, Pinpoints, Protocol, token_map
from cropl.models.clip_llava import ClipLlavaVLM
from cropl.models.frozen import frozen_without_graph
from cropl.models.inputs import VLMInputs, as_encoder_output, check_rows, normalised
from cropl.models.text import left_padded, special_tokens
from cropl.models.tower_view import (
    Record,
    TowerImage,
    TowerView,
    Watch,
    clip_layer,
    watch_class_token,
    watch_packed,
)
from cropl.prompt import Rendered, clean_question, llava_prompt, vicuna
from cropl.tiling import TokenMap

if TYPE_CHECKING:
    from typing_extensions import Self

# B images, P crops of an image (the whole view first), V visual tokens, D width of the decoder


class LlavaNextVLM(ClipLlavaVLM):
    """LLaVA-NeXT (LLaVA-1.6) with any of its language models.

    Args:
        model: a `LlavaNextForConditionalGeneration`.
        processor: its `LlavaNextProcessor`; not needed for pruning a model that one feeds oneself.
        system: put the `vicuna_v1` system sentence into prompts, instead of the checkpoint's own chat template.
        protocol: see the module.

    Raises:
        ValueError: the model's visual tokens are no plain grids, or the processor belongs to another model.
    """

    model_class: ClassVar[type[PreTrainedModel]] = LlavaNextForConditionalGeneration

    def __init__(self, model: Any, processor: Any = None, system: bool = False, protocol: Protocol = "anyres") -> None:
        super().__init__(model, processor, system)
        if protocol not in get_args(Protocol):
            raise ValueError(f"protocol {protocol!r}: must be one of {', '.join(get_args(Protocol))}")
        self.protocol: Protocol = protocol
        config = model.config
        self.tile = int(config.vision_config.image_size)
        self.patch = int(config.vision_config.patch_size)
        self.side = self.tile // self.patch
        self.pinpoints: Pinpoints = tuple((int(height), int(width)) for height, width in config.image_grid_pinpoints)
        if processor is not None:
            self._check_processor(processor)

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        system: bool | None = None,
        protocol: Protocol = "anyres",
        **model_options: Any,
    ) -> Self:
        """As `VLM.from_pretrained`; `system` and `protocol` as for the class, None as the checkpoint was trained."""
        return cls._loaded(name_or_path, dtype, device, system, model_options, protocol=protocol)

    def token_grids(
        self, image_sizes: Sequence[tuple[int, int]], tensors: Mapping[str, Any] | None = None
    ) -> list[TokenMap]:
        """The sizes in the forward's tensors count where there are any, as they made the tokens."""
        known = None if tensors is None else tensors.get("image_sizes")
        if known is not None:
            if len(known) % len(image_sizes):
                raise ValueError(f"{len(known)} images in the batch and {len(image_sizes)} image sizes: one per image")
            image_sizes = [(int(w), int(h)) for h, w in known[:: len(known) // len(image_sizes)]]
        return [self.token_map(*size) for size in image_sizes]

    def token_map(self, width: int, height: int) -> TokenMap:
        """Where the tokens of an image of this size lie."""
        if self.protocol == "fixed":
            return token_map(width, height, ((2 * self.tile, 2 * self.tile),), self.tile, self.patch, unpad=False)
        return token_map(width, height, self.pinpoints, self.tile, self.patch)

    @property
    def most_tokens(self) -> int:
        """Visual tokens of the image that has the most."""
        return max(self.token_map(width, height).num_tokens for height, width in self.pinpoints)

    def inputs(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        features: Sequence[Tensor] | None = None,
    ) -> VLMInputs:
        check_rows(images, questions, features)
        processor = self._needs_processor()
        grids = self.token_grids([image.size for image in images])
        mark = processor.image_token
        prompts = [
            self._prompt(question).replace(mark, mark * grid.num_tokens, 1) for question, grid in zip(questions, grids)
        ]
        tensors: dict[str, Any] = left_padded(processor.tokenizer, prompts, self.adds_bos, self.device)
        tensors["image_sizes"] = torch.tensor([(h, w) for w, h in (image.size for image in images)], device=self.device)
        if features is None and self.protocol == "anyres":
            crops = self.prepare.pixels(images)
            pixels_BPCHW = nn.utils.rnn.pad_sequence(crops, batch_first=True)
            weight = next(self.tower.parameters())
            tensors["pixel_values"] = pixels_BPCHW.to(weight.device, weight.dtype)
        else:
            tensors["mm_encoder_outputs"] = as_encoder_output(
                self.encode_images(images) if features is None else features
            )
        return VLMInputs(tensors, grids)

    @torch.inference_mode()
    def encode_images(self, images: Sequence[Image.Image]) -> list[Tensor]:
        return self._packed(self.prepare.pixels(images), [image.size for image in images])

    def watch_tower(self, record: Record) -> Watch:
        """A view for each crop: the whole view, then the tiles."""
        layer = clip_layer(self.tower, self.model.config.vision_feature_layer)
        if self.protocol == "anyres":
            return watch_packed(layer, self.projector, self.model.model, record)

        def seen(views: list[TowerView]) -> None:
            for first in range(0, len(views), 5):
                mine = views[first : first + 5]
                record(TowerImage(mine, _in_rows(torch.stack([view.token_VD for view in mine]), self.side)))

        return watch_class_token(layer, self.projector, seen)

    @property
    def prepare(self) -> Crops:
        pinpoints = self.pinpoints if self.protocol == "anyres" else ((2 * self.tile, 2 * self.tile),)
        return Crops(self._needs_processor().image_processor, pinpoints, self.tile, self.patch, self.protocol)

    def token_shape(self, patches: tuple[int, int]) -> tuple[int, int]:
        """Newlines and two grids make no rectangle: all tokens in a row, as positions count them."""
        height, width = patches
        return 1, self.token_map(width, height).num_tokens

    def encode_prepared(self, pixels: Sequence[Tensor], patches: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Here `patches` are (height, width) of each picture in pixels, which decides what its tokens are."""
        processor = self._needs_processor().image_processor
        ready = [normalised(one.flatten(2), processor).view(one.shape) if one.dtype == torch.uint8 else one
                 for one in (crops.to(self.device) for crops in pixels)]  # fmt: skip
        with frozen_without_graph(self.tower, self.projector):
            return self._packed(ready, [(width, height) for height, width in patches])

    def _packed(self, crops: Sequence[Tensor], sizes: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Projected tokens (V, D) in the model's order, of crops (P, 3, H, W) of images of these (width, height)."""
        weight, config = next(self.tower.parameters()), self.model.config
        states = self.tower(torch.cat(list(crops)).to(weight.device, weight.dtype), output_hidden_states=True)
        layers = config.vision_feature_layer
        chosen = [states.hidden_states[layer] for layer in ([layers] if isinstance(layers, int) else layers)]
        features = self.projector(torch.cat(chosen, dim=-1)[:, 1:]).split([len(one) for one in crops])
        if self.protocol == "fixed":
            return [_in_rows(one_PVD, self.side) for one_PVD in features]
        heights = [(height, width) for width, height in sizes]
        packed, _ = self.model.pack_image_features(
            features, heights, config.vision_feature_select_strategy, self.model.model.image_newline
        )
        return list(packed)

    def render(self, turns: Sequence[tuple[str, str]], image: bool, clean: bool = True) -> Rendered:
        if self._prompt("?") != llava_prompt("?", self.system):
            raise NotImplementedError("only LLaVA-NeXT with a vicuna template can be trained, and this one has another")
        special, end = special_tokens(self.tokenizer), self.tokenizer.eos_token
        return vicuna(turns, image, self.system, special, end, clean)

    def _prompt(self, question: str) -> str:
        special = special_tokens(self.tokenizer)
        template = getattr(self.processor, "chat_template", None) or getattr(self.tokenizer, "chat_template", None)
        if self.system or template is None:
            return llava_prompt(question, self.system, special)
        content = [{"type": "image"}, {"type": "text", "text": clean_question(question, special)}]
        text: str = self.processor.apply_chat_template(
            [{"role": "user", "content": content}], chat_template=template, add_generation_prompt=True
        )
        return text.removeprefix(self.tokenizer.bos_token or "")  # the tokenizer adds its own

    def _check_processor(self, processor: Any) -> None:
        theirs = tuple((int(h), int(w)) for h, w in processor.image_processor.image_grid_pinpoints)
        if theirs != self.pinpoints:
            raise ValueError(
                f"the processor's pinpoints {theirs} are not the model's {self.pinpoints}: load both from one"
            )


def _in_rows(crop_PVD: Tensor, side: int) -> Tensor:
    """A whole view and 2 x 2 tiles to the whole view's tokens and those of all tiles, row by row."""
    tiles = crop_PVD[1:].unflatten(0, (2, 2)).unflatten(2, (side, side))
    return torch.cat([crop_PVD[0], tiles.transpose(1, 2).flatten(0, 3)])
