"""Trains PLC (paper, 3.3 and 4.1): compressor, projector and language model together, the vision tower frozen."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal, get_args

from torch import Tensor

from cropl.data.packing import Turn
from cropl.grid import Region
from cropl.models.card import Card
from cropl.models.compressor import Compressor, CompressorConfig, Positions
from cropl.models.export import full_state
from cropl.modules.documents import Picture, Shown, check_without_grid, pictures_of, unseen
from cropl.modules.instruction import InstructionModule
from cropl.prompt import RegionCodec, localizer_prompt
from cropl.tiling import Tokens

RegionSource = Literal["gt", "predicted", "whole"]
Target = Literal["answer", "coordinates"]
_NO_REGIONS = (
    "give data.regions, a file that `cropl predict` writes with a localizer, or set model.regions to gt or whole"
)


class CompressorModule(InstructionModule):
    """Conversations over compressed pictures: 68 visual tokens each, at consecutive positions.

    Args:
        checkpoint: folder or name of the model to start from.
        compressor: folder of an exported PLC to go on from; None starts a new one of the options below.
        queries, outside_queries, anchors, positions, unit: see :class:`~cropl.models.compressor.CompressorConfig`.
        regions: of questions with evidence boxes: ``gt``, the true region; ``predicted``, a localizer's, which the data
            module reads (its argument ``regions``); or ``whole``, the whole image.
        instruction_regions: of all others: ``whole`` or ``predicted``.
        target: what questions with evidence boxes are trained to say: their ``answer``, or the ``coordinates`` of their
            region in answer to the localizer's prompt.
        options: the other arguments of :class:`~cropl.modules.instruction.InstructionModule`; ``stride`` and
            ``evidence_weight`` need tokens on a grid, and are refused.

    Raises:
        ValueError: an option is unknown, the model's family cannot be pruned, or the compressor is of another width.

    Batches are those of :class:`~cropl.modules.instruction.InstructionModule`, with ``tokens``, the
    :class:`~cropl.grid.TokenGrid` of each picture. Each question has compressed tokens of its own, and is a document of
    its own.
    """

    def __init__(
        self,
        checkpoint: str,
        compressor: str | None = None,
        queries: int = 64,
        outside_queries: int = 4,
        anchors: bool = True,
        positions: Positions = "sincos",
        unit: float = 1.0,
        regions: RegionSource = "gt",
        instruction_regions: Literal["whole", "predicted"] = "whole",
        target: Target = "answer",
        lr: float = 1e-5,
        **options: Any,
    ):
        check_without_grid(options, "PLC")
        super().__init__(checkpoint, lr=lr, **options)
        if not self.vlm.prunable:
            raise ValueError(
                f"{checkpoint} is a {self.model.config.model_type} model, which cannot answer over compressed tokens: "
                "train PLC with a LLaVA-1.5 or a Qwen2-VL"
            )
        for name, given, known in (
            ("regions", regions, RegionSource), ("instruction_regions", instruction_regions, RegionSource),
            ("target", target, Target),
        ):  # fmt: skip
            if given not in get_args(known):
                raise ValueError(f"{name} {given!r}: must be one of {', '.join(get_args(known))}")
        self.regions, self.instruction_regions, self.target = regions, instruction_regions, target
        width = int(self.vlm.decoder.config.hidden_size)
        if compressor is not None:
            self.compressor = Compressor.from_pretrained(compressor).train()
            if self.compressor.config.width != width:
                raise ValueError(
                    f"compressor {compressor} has the width {self.compressor.config.width}, and {checkpoint} {width}: "
                    "they were not trained together"
                )
        else:
            side: int = self.vlm.side  # type: ignore[attr-defined]
            config = CompressorConfig(width, queries, outside_queries, anchors, positions, unit, side)
            self.compressor = Compressor(config)

    def documents(self, batch: dict[str, Any], stride: int = 1) -> tuple[list[Shown], list[Tensor]]:
        features = self.vlm.encode_prepared(batch["pixels"], batch["grids"])
        shown: list[Shown] = []
        seen: list[tuple[int, Region]] = []
        places: list[int] = []  # of the documents with pictures
        for rows, image in zip(batch["questions"], pictures_of(batch)):
            asked = self.drawn(rows)
            if image is None:
                shown.append(Shown.of(asked))
                continue
            for row in asked:
                self._check_tokens(batch["tokens"][image], row)
                places.append(len(shown))
                shown.append(Shown.of([row]))
                seen.append((image, self.region(row)))
        idle = [(image, Region.full()) for image in unseen(batch)]
        compressed = self.compressor(
            [features[image] for image, _ in seen + idle],
            [batch["tokens"][image] for image, _ in seen + idle],
            [region for _, region in seen + idle],
        )
        for place, tokens_MD in zip(places, compressed):
            shown[place].picture = Picture.in_a_row(tokens_MD)
        return shown, compressed[len(seen) :]

    def _check_tokens(self, tokens: Tokens, row: dict[str, Any]) -> None:
        """ValueError where the picture has fewer tokens than it would become, which no run could use either."""
        made = self.compressor.count(tokens)
        if made > tokens.num_tokens:
            raise ValueError(
                f"sample {row.get('key') or row.get('question')!r}: PLC makes {made} tokens of the {tokens.num_tokens} "
                "of its picture: leave small pictures out, train fewer tokens (model.queries, model.anchors false), "
                "or, if max_pixels (model.model_options) shrank the picture, give more"
            )

    def setup(self, stage: str) -> None:
        """Whether there are regions is known before the first step.

        Raises:
            ValueError: regions are to be predicted ones, and the data module was given none.
        """
        super().setup(stage)
        data = getattr(self.trainer, "datamodule", None)
        if "predicted" in (self.regions, self.instruction_regions) and getattr(data, "regions", "") is None:
            raise ValueError(f"model.regions predicted: {_NO_REGIONS}")

    def region(self, row: dict[str, Any]) -> Region:
        """The region that a question's picture is compressed with.

        Raises:
            ValueError: it is to be a predicted one, and the data has none.
        """
        source = self.regions if row.get("localize", True) else self.instruction_regions
        if source == "predicted":
            if "predicted" not in row:
                raise ValueError(
                    f"sample {row.get('key') or row.get('question')!r} has no predicted region: {_NO_REGIONS}"
                )
            return Region(*row["predicted"])
        return Region(*row["region"]) if source == "gt" else Region.full()

    def as_turn(self, row: dict[str, Any], image: bool) -> Turn:
        if self.target == "answer" or not row.get("localize", True):
            return super().as_turn(row, image)
        answer = RegionCodec("digits").encode(Region(*row["region"]))
        return self.prompts.turn([(localizer_prompt(row["question"]), answer)], image, clean=False)

    def card(self) -> Card:
        return replace(super().card(), what=f"A {self.model.config.model_type} model with PLC", compressed=True)

    def beside(self) -> Callable[[Path], Any]:
        """Writes the compressor, so that ``PLC.from_pretrained`` reads the folder."""
        state = full_state(self.compressor)  # all processes have a part of it

        def write(folder: Path) -> None:
            plain = Compressor(self.compressor.config)
            plain.load_state_dict(state)
            plain.save_pretrained(folder)

        return write
