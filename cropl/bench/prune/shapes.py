"""Shapes of published models for the pruning bench, and models of these shapes with random weights.

One file of `shapes/` is one of them: the config as published (or its name, where `cropl.models` keeps it), and how many
tokens a question has. LLaVA-NeXT is measured as LLaVA with NeXT's tokens and crops, as its layers are the same ones.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, GenerationConfig

from cropl.errors import UsageError, nearest
from cropl.metrics.cost import vision_flops
from cropl.models.llava import LlavaVLM
from cropl.models.skeleton import config_of
from cropl.models.tower_view import Record, TowerImage, TowerView, Watch, clip_layer, watch_class_token
from cropl.models.vlm import VLM, family

FOLDER = Path(__file__).parents[1] / "shapes"


@dataclass(frozen=True)
class Shape:
    """One model and one question.

    Attributes:
        name: of its file.
        about: what it is, for people.
        config: as published: the name of a model whose config is kept in `cropl.models`, or the config itself.
        grid: rows and columns of a picture's visual tokens.
        budgets: visual tokens kept (or shares of them) at which papers report this model.
        crops: pictures that the vision tower sees for one question.
        text_tokens: tokens of the question and what surrounds it.
        localizer: the shape of the localizer that goes with it.
    """

    name: str
    about: str
    config: str | dict[str, Any]
    grid: tuple[int, int]
    budgets: tuple[int | float, ...]
    crops: int = 1
    text_tokens: int = 70
    localizer: str | None = None

    @property
    def visual_tokens(self) -> int:
        """Of one question."""
        return self.grid[0] * self.grid[1]

    def model_config(self) -> Any:
        """A new config object."""
        return config_of(self.config) if isinstance(self.config, str) else AutoConfig.for_model(**self.config)

    def patches(self, config: Any) -> tuple[int, int]:
        """Rows and columns of the patches of each crop."""
        vision = config.vision_config
        if config.model_type == "llava":
            return (vision.image_size // vision.patch_size,) * 2
        return self.grid[0] * vision.spatial_merge_size, self.grid[1] * vision.spatial_merge_size

    def pixels(self, config: Any) -> int:
        """Area of what the vision tower sees for one question."""
        rows, columns = self.patches(config)
        return int(self.crops * rows * columns * config.vision_config.patch_size**2)

    def vision_flops(self, config: Any) -> int:
        """FLOPs of the vision tower and projector for one question."""
        return self.crops * vision_flops(config, self.patches(config))


class Cropped(LlavaVLM):
    """LLaVA whose tower sees a picture as so many crops, one after the other.

    Args:
        model: a `LlavaForConditionalGeneration`.
        crops: of a picture.
    """

    def __init__(self, model: Any, crops: int) -> None:
        super().__init__(model)
        self.crops = crops

    def watch_tower(self, record: Record) -> Watch:
        held: list[TowerView] = []

        def seen(views: list[TowerView]) -> None:
            held.extend(views)
            while len(held) >= self.crops:
                own, held[:] = held[: self.crops], held[self.crops :]
                record(TowerImage(own, torch.cat([view.token_VD for view in own])))

        return watch_class_token(clip_layer(self.tower, self.model.config.vision_feature_layer), self.projector, seen)


def names() -> list[str]:
    """The known shapes."""
    return sorted(path.stem for path in FOLDER.glob("*.json"))


def shape_of(name: str) -> Shape:
    """The shape of this name.

    Raises:
        UsageError: there is none.
    """
    if name not in names():
        raise UsageError(f"unknown shape {name!r}{nearest(name, names(), 'shapes')}")
    kept = json.loads((FOLDER / f"{name}.json").read_text(encoding="utf-8"))
    return Shape(name, **{**kept, "grid": tuple(kept["grid"]), "budgets": tuple(kept["budgets"])})


def build(shape: Shape, device: torch.device, dtype: torch.dtype) -> VLM:
    """A model of this shape: its weights are drawn where they stay and in their type, so that there is one copy only.

    The weights are the same in every run on one device. Pictures of several crops are LLaVA's alone.
    """
    config = shape.model_config()
    wrapper = family(config.model_type)
    with torch.random.fork_rng(devices=[]), device:
        torch.default_generator.manual_seed(0)
        model = wrapper.model_class._from_config(config, dtype=dtype, attn_implementation="sdpa")
    model.tie_weights()
    never = config.get_text_config().vocab_size  # a token beyond all others: looked for at every step, as in earnest
    model.generation_config = GenerationConfig(pad_token_id=0, eos_token_id=never, do_sample=False)
    return wrapper(model.eval()) if shape.crops == 1 else Cropped(model.eval(), shape.crops)


def sizes(vlm: VLM) -> dict[str, int]:
    """Parameters of the language model with its head, of the vision tower with its projector, and of all."""
    seen = {id(parameter): parameter for parameter in vlm.model.parameters()}.values()
    whole = sum(parameter.numel() for parameter in seen)
    head = vlm.model.get_output_embeddings().weight
    language = {id(parameter): parameter for parameter in (*vlm.decoder.parameters(), head)}.values()
    llm = sum(parameter.numel() for parameter in language)
    return {"llm": llm, "vision": whole - llm, "all": whole}
