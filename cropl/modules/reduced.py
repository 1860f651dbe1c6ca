"""Trains a model for the visual tokens that a method leaves it, as VisionZip‡ trains the projector for VisionZip."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from cropl.models.card import Card
from cropl.models.tower_view import TowerImage
from cropl.models.tuning import Tune
from cropl.modules.documents import Picture, check_without_grid
from cropl.modules.instruction import InstructionModule
from cropl.pruning.tower import TowerMethod


class ReducedModule(InstructionModule):
    """Conversations over the visual tokens that a method makes of what the frozen vision tower shows.

    Args:
        checkpoint: folder or name of the model to start from.
        method: such as ``cropl.pruning.VisionZip``; the trained model is to be used with it.
        tune: see :class:`~cropl.modules.instruction.InstructionModule`; VisionZip‡ trains the ``projector`` alone.
        options: its other arguments; ``stride`` and ``evidence_weight`` need all tokens of a grid, and are refused.

    Raises:
        ValueError: an option is unknown, or the model's tower has no class token.

    Batches are those of :class:`~cropl.modules.instruction.InstructionModule`. The tokens of a picture have consecutive
    positions, as in ``pruned``.
    """

    def __init__(self, checkpoint: str, method: TowerMethod, tune: Tune = "projector", **options: Any):
        check_without_grid(options, method.name)
        super().__init__(checkpoint, tune=tune, **options)
        if not self.vlm.class_token:
            raise ValueError(
                f"{checkpoint} is a {self.model.config.model_type} model, in which tokens keep their places in the "
                f"image: training with {method.name} puts them at consecutive positions, as in a LLaVA"
            )
        self.method = method

    def pictures(self, batch: dict[str, Any], stride: int = 1) -> list[Picture]:
        seen: list[TowerImage] = []
        watch = self.vlm.watch_tower(seen.append)
        try:
            self.vlm.encode_prepared(batch["pixels"], batch["grids"])
        finally:
            watch.remove()
        return [Picture.in_a_row(self.method.reduce_image(image).token_MD) for image in seen]

    def card(self) -> Card:
        return replace(super().card(), what=f"A {self.model.config.model_type} model trained with {self.method.name}")
