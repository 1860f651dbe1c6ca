"""The VLM protocol: what data, pruning and evaluation may know of a vision-language model.

A `VLM` wraps the user's own `transformers` model (and processor); one subclass per family lives in its own file.
Nothing else in cropl reads a model's attributes, so a new family is one file that implements this class.

Shapes: B rows, S sequence, V visual tokens of one image, D hidden width.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from PIL import Image
from torch import Tensor, nn
from transformers import PreTrainedModel

from cropl.data.collate import Prepared
from cropl.data.packing import Turn
from cropl.models.families import FAMILIES
from cropl.models.inputs import VLMInputs
from cropl.models.loading import load_config, load_model, load_processor
from cropl.models.tower_view import Record, Watch
from cropl.prompt import Rendered
from cropl.tiling import Tokens

if TYPE_CHECKING:
    from typing_extensions import Self


class VLM(ABC):
    """One vision-language model, seen through what cropl needs of it.

    Attributes:
        model: the user's `transformers` model; never modified by this class.
        processor: its processor, or None where only the model is used (pruning a model one already has).
    """

    model_class: ClassVar[type[PreTrainedModel]]
    """The `transformers` class that this family wraps."""
    prunable: ClassVar[bool] = False
    """Whether the decoder surgery of `cropl.pruning` knows this family."""
    adds_bos: ClassVar[bool] = False
    """Whether a prompt begins with what the tokenizer adds to any text, and not with its template alone."""
    protocol: str | None = None
    """How images become visual tokens, in families that know several ways; rows of results name it."""
    class_token: ClassVar[bool] = False
    """Whether the vision tower has a token that stands for the whole image."""

    def __init__(self, model: Any, processor: Any = None) -> None:
        if not isinstance(model, self.model_class):
            names = f"{type(self).__name__} wraps {self.model_class.__name__}, not {type(model).__name__}"
            raise ValueError(f"{names}; load_vlm(path) picks the right class")
        self.model: Any = model
        self.processor: Any = processor

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        **model_options: Any,
    ) -> Self:
        """Load model and processor from a local folder or a hub name: safetensors only, no remote code.

        Args:
            name_or_path: folder of a checkpoint, or a hub name such as `llava-hf/llava-1.5-7b-hf`.
            dtype: of the weights; None is float32 on a CPU and the checkpoint's own elsewhere.
            device: None is `cuda` where there is one, else `cpu`.
            model_options: passed on to `from_pretrained` (`attn_implementation`, `quantization_config`, ...).

        Raises:
            ModelLoadError: the checkpoint is missing, incomplete, or cannot be fetched.
        """
        model = load_model(cls.model_class, name_or_path, dtype, device, **model_options)
        return cls(model, load_processor(name_or_path))

    @classmethod
    def with_processor(cls, model: Any, processor: Any) -> Self:
        """A loaded model, and the processor that `AutoProcessor` gives for its checkpoint."""
        return cls(model, processor)

    @property
    def base(self) -> nn.Module:
        """The module under the language-model head, which receives `input_ids`."""
        base: nn.Module = self.model.model
        return base

    @property
    def decoder(self) -> Any:
        """The language model: the module with `.layers`, `.norm`, `.rotary_emb` and `.config`."""
        return self.model.model.language_model

    @abstractmethod
    def token_grids(
        self, image_sizes: Sequence[tuple[int, int]], tensors: Mapping[str, Any] | None = None
    ) -> Sequence[Tokens]:
        """Where the visual tokens of images of these `(width, height)` lie.

        `tensors` are the keyword arguments of the forward in question, for families whose grid depends on them.
        """

    def token_maps(self, image_sizes: Sequence[tuple[int, int]]) -> Sequence[Tokens]:
        """The grids that `inputs` tells of displayed images of these `(width, height)`; the tower is not run.

        A family whose `token_grids` need a forward's tensors says here how it resizes.
        """
        return self.token_grids(image_sizes)

    @abstractmethod
    def inputs(
        self,
        images: Sequence[Image.Image],
        questions: Sequence[str],
        features: Sequence[Tensor] | None = None,
    ) -> VLMInputs:
        """Left-padded model inputs for one image and one question per row, on the model's device.

        `features` are what `encode_images` returned for these images; the vision tower is then not run again.
        """

    @abstractmethod
    def encode_images(self, images: Sequence[Image.Image]) -> list[Tensor]:
        """Projected visual tokens `(V_i, D)` of each image."""

    def watch_tower(self, record: Record) -> Watch:
        """Tell `record` of each image that runs through the vision tower, in order, until the watch is removed.

        Raises:
            NotImplementedError: the family does not show its tower.
            ValueError: what the language model gets of an image is not of one layer of it.
        """
        raise NotImplementedError(f"{type(self).__name__} does not show what its vision tower attends to")

    @property
    def merge(self) -> int:
        """Each visual token stands for `merge` x `merge` patches of the tower."""
        return 1

    @property
    def max_pixels(self) -> int | None:
        """Upper bound of the area of a picture as the tower sees it; None where the family knows none."""
        return None

    @property
    def tokenizer(self) -> Any:
        """The processor's tokenizer."""
        return self._needs_processor().tokenizer

    def save_processor(self, folder: str | Path) -> None:
        """Write tokenizer and image processor into a checkpoint's folder."""
        self._needs_processor().save_pretrained(folder)

    def _needs_processor(self) -> Any:
        if self.processor is None:
            name = type(self).__name__
            raise ValueError(f"this {name} has no processor: load it with {name}.from_pretrained(path)")
        return self.processor

    # What training needs beside the above. A family for inference alone leaves it out.

    @property
    def tower(self) -> nn.Module:
        """The vision tower. May contain the projector."""
        raise self._cannot_train("tower")

    @property
    def projector(self) -> nn.Module:
        """What maps the tower's features to the decoder's width."""
        raise self._cannot_train("projector")

    @property
    def shard_units(self) -> list[nn.Module]:
        """The decoder layers, in order: what sharded training gathers, computes and frees one after the other."""
        raise self._cannot_train("shard_units")

    @property
    def prepare(self) -> Callable[[Image.Image], Prepared]:
        """Turns one picture into the tower's input, in a loader's worker as well: it holds no weights."""
        raise self._cannot_train("prepare")

    def token_shape(self, patches: tuple[int, int]) -> tuple[int, int]:
        """(rows, columns) of the visual tokens of a picture of these patches, as `visual_positions` takes them."""
        return patches[0] // self.merge, patches[1] // self.merge

    def encode_prepared(self, pixels: Sequence[Tensor], patches: Sequence[tuple[int, int]]) -> list[Tensor]:
        """Projected visual tokens `(V_i, D)` of prepared pictures, with gradients where weights want them.

        `patches` are the (rows, columns) of each picture's patches.
        """
        raise self._cannot_train("encode_prepared")

    def prompt_ids(self, question: str) -> list[int]:
        """Token ids of the prompt of one image (a single placeholder) and one question, up to the answer."""
        raise self._cannot_train("prompt_ids")

    def render(self, turns: Sequence[tuple[str, str]], image: bool, clean: bool = True) -> Rendered:
        """A conversation of (question, answer) in the model's template, with one placeholder where there is an image.

        Up to the first answer it is the text of `prompt_ids`. `clean=False` leaves control tokens in the answers.
        """
        raise self._cannot_train("render")

    def conversation(self, turns: Sequence[tuple[str, str]], image: bool, clean: bool = True) -> Turn:
        """Token ids and labels of a whole conversation, tokenised in one go; see `conversation_ids`.

        Raises:
            ValueError: a question is empty, or the tokenizer tells no offsets or mistakes text for an image.
        """
        if not self.tokenizer.is_fast:
            raise ValueError(f"{type(self.tokenizer).__name__} tells no offsets: training needs a fast tokenizer")
        rendered = self.render(turns, image, clean)
        made = self.tokenizer(rendered.text, add_special_tokens=self.adds_bos, return_offsets_mapping=True)
        ids, offsets = list(made["input_ids"]), made["offset_mapping"]
        if ids.count(self.image_token_id) != int(image):
            raise ValueError(f"{ids.count(self.image_token_id)} image placeholders in {rendered.text[:80]!r}...")
        return Turn.labelled(ids, offsets, rendered.answers, rendered.question)

    def conversation_ids(self, turns: Sequence[tuple[str, str]], image: bool) -> tuple[list[int], list[int]]:
        """Token ids of a conversation of (question, answer), and their labels.

        There is one placeholder where there is an image. Tokens of an answer, and what ends it, are their own labels;
        others have `IGNORE` (-100). Up to the first answer the ids are those of `prompt_ids`.
        """
        turn = self.conversation(turns, image)
        return turn.ids, turn.labels

    def _cannot_train(self, missing: str) -> NotImplementedError:
        return NotImplementedError(f"{type(self).__name__} cannot be trained: it does not define `{missing}`")

    def visual_positions(self, start: int, grid: tuple[int, int], cell_V: Tensor) -> Tensor:
        """Position ids `(R, V)` of the tokens `cell_V` of a (rows, columns) grid whose first position is `start`."""
        return (start + cell_V)[None]

    @property
    def num_layers(self) -> int:
        """Number of decoder layers L."""
        return int(self.decoder.config.num_hidden_layers)

    @property
    def image_token_id(self) -> int:
        """Id of the placeholder that stands for one visual token in `input_ids`."""
        return int(self.model.config.image_token_id)

    @property
    def device(self) -> torch.device:
        """Where `input_ids` go."""
        device: torch.device = next(self.model.get_input_embeddings().parameters()).device
        return device

    def visual_mask(self, input_ids: Tensor) -> Tensor:
        """Bool BS: which positions are visual tokens."""
        return input_ids == self.image_token_id

    @torch.inference_mode()
    def generate(self, inputs: VLMInputs, **options: Any) -> list[str]:
        """Answer every row: the decoded continuation, stripped. Greedy, at most 32 tokens unless `options` say else."""
        options = {"do_sample": False, "max_new_tokens": 32, **options}
        ids_BS = self.model.generate(**inputs.kwargs(), **options)
        prompt_length = inputs.tensors["input_ids"].shape[1]
        texts = self.processor.batch_decode(ids_BS[:, prompt_length:], skip_special_tokens=True)
        return [text.strip() for text in texts]


def family(model_type: str) -> type[VLM]:
    """The VLM class for a `config.model_type`; ValueError lists the supported ones."""
    if model_type not in FAMILIES:
        raise ValueError(f"model type {model_type!r} is not supported; supported: {', '.join(FAMILIES)}")
    module, name = FAMILIES[model_type].rsplit(".", 1)
    found: type[VLM] = getattr(import_module(module), name)
    return found


def as_vlm(model: Any) -> VLM:
    """A VLM for a `transformers` model (without a processor), or the VLM itself."""
    if isinstance(model, VLM):
        return model
    model_type = getattr(getattr(model, "config", None), "model_type", None)
    if not isinstance(model, PreTrainedModel) or model_type not in FAMILIES:
        raise ValueError(f"{type(model).__name__} is not supported; supported model types: {', '.join(FAMILIES)}")
    return family(model_type)(model)


def load_vlm(
    name_or_path: str,
    dtype: torch.dtype | str | None = None,
    device: torch.device | str | None = None,
    **model_options: Any,
) -> VLM:
    """Load the VLM of a checkpoint folder or hub name, its family taken from `config.model_type`.

    Arguments and errors are those of `VLM.from_pretrained`; an unsupported family is a ValueError.
    """
    config = load_config(name_or_path)
    return family(config.model_type).from_pretrained(name_or_path, dtype, device, **model_options)
