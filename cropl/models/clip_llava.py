"""What LLaVA-1.5 and LLaVA-NeXT share: a CLIP tower, a projector, a prompt that may begin with a system sentence."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import nn

from cropl.models.export import SYSTEM_KEY
from cropl.models.loading import load_model, load_processor
from cropl.models.vlm import VLM

if TYPE_CHECKING:
    from typing_extensions import Self


class ClipLlavaVLM(VLM):
    """The common half of both families.

    Args:
        model: a LLaVA of the family's class.
        processor: its processor; not needed for pruning a model that one feeds oneself.
        system: put the `vicuna_v1` system sentence into prompts.

    Raises:
        ValueError: the tower leaves more than a token per patch, or the processor belongs to another model.
    """

    prunable: ClassVar[bool] = True
    adds_bos: ClassVar[bool] = True
    class_token: ClassVar[bool] = True

    def __init__(self, model: Any, processor: Any = None, system: bool = False) -> None:
        super().__init__(model, processor)
        self.system = system
        strategy = model.config.vision_feature_select_strategy
        if strategy != "default":
            raise ValueError(
                f"vision_feature_select_strategy={strategy!r} is not supported: "
                "only 'default' leaves one token per patch"
            )
        if processor is not None and processor.image_token_id != self.image_token_id:
            raise ValueError(
                f"the processor's image token id {processor.image_token_id} is not the model's {self.image_token_id}: "
                "load both from the same checkpoint"
            )

    @classmethod
    def from_pretrained(
        cls,
        name_or_path: str,
        dtype: torch.dtype | str | None = None,
        device: torch.device | str | None = None,
        system: bool | None = None,
        **model_options: Any,
    ) -> Self:
        """As `VLM.from_pretrained`; `system` as for the class, None as the checkpoint was trained."""
        return cls._loaded(name_or_path, dtype, device, system, model_options)

    @classmethod
    def _loaded(
        cls,
        name_or_path: str,
        dtype: torch.dtype | str | None,
        device: torch.device | str | None,
        system: bool | None,
        model_options: dict[str, Any],
        **own: Any,
    ) -> Self:
        """As `from_pretrained`; `own` are further arguments of the class."""
        model = load_model(cls.model_class, name_or_path, dtype, device, **model_options)
        if system is None:
            system = bool(getattr(model.config, SYSTEM_KEY, False))
        return cls(model, load_processor(name_or_path), system, **own)

    @property
    def tower(self) -> nn.Module:
        tower: nn.Module = self.model.model.vision_tower
        return tower

    @property
    def projector(self) -> nn.Module:
        projector: nn.Module = self.model.model.multi_modal_projector
        return projector

    @property
    def shard_units(self) -> list[nn.Module]:
        return list(self.decoder.layers)

    @classmethod
    def with_processor(cls, model: Any, processor: Any) -> Self:
        return cls(model, processor, bool(getattr(model.config, SYSTEM_KEY, False)))

    def prompt_ids(self, question: str) -> list[int]:
        return list(self.tokenizer(self._prompt(question))["input_ids"])

    @abstractmethod
    def _prompt(self, question: str) -> str:
        """The text of `prompt_ids`."""
