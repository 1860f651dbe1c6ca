"""Fine-tunes a localizer (paper, 3.2 and 4.1): the vision tower frozen, the merger and the language model trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from torch import Tensor

from cropl.data.packing import Turn
from cropl.data.sample import Sample
from cropl.grid import GRID, Region
from cropl.metrics.area import AreaRecallBySource
from cropl.models.coordinates import Prompts, decode, decode_freely, distribution, prefill_packed
from cropl.models.localizer import CODEC_KEY, MAX_NEW_TOKENS, choose_readout, stored_codec
from cropl.models.lora import train_rows
from cropl.modules.documents import pictures_of
from cropl.modules.instruction import InstructionModule
from cropl.prompt import RegionCodec, localizer_prompt


@dataclass
class Located:
    """A region as it was predicted.

    Attributes:
        region: the full region where the answer was none.
        probability: joint probability of its coordinates; None in free decoding.
        malformed: the answer was no region.
    """

    region: Region
    probability: float | None = None
    malformed: bool = False


class LocalizerModule(InstructionModule):
    """Trains Appendix A's template: the question with its instruction, answered by the region's coordinates.

    Args:
        checkpoint: folder or name of the Qwen2-VL or Qwen2.5-VL model to start from.
        codec: ``tokens`` (16 added coordinate tokens, new rows of the embedding table) or ``digits``; None is what
            ``checkpoint`` has, else ``tokens``.
        readout: of validation, prediction and the exported checkpoint, see
            :class:`~cropl.models.localizer.Localizer`; None is what ``checkpoint`` has, else ``greedy``.
        options: the other arguments of :class:`InstructionModule`. With ``tune: lora`` the coordinate tokens' rows of
            the embedding table train as well.

    Batches are those of :class:`InstructionModule`; each question also has its ``region`` on the 8 x 8 grid. One whose
    ``localize`` is False has no evidence: it is trained as the conversation that it is (the paper's mix has general
    answers too), and not scored. Validation decodes as inference does, on the packed rows, and logs the paper's four
    recall columns (Table 9), precision, IoU, size and the share of malformed answers: over all, and for each source.
    """

    def __init__(
        self,
        checkpoint: str,
        codec: Literal["tokens", "digits"] | None = None,
        readout: str | None = None,
        lr: float = 2e-5,
        **options: Any,
    ):
        super().__init__(checkpoint, lr=lr, **options)
        self.codec = stored_codec(self.model.config) if codec is None else RegionCodec(codec)
        if add_tokens(self.model, self.tokenizer, self.codec.added_tokens):
            lay_out_coordinates(self.model, self.coordinate_ids())
        if self.tune != "full" and self.codec.added_tokens:
            train_rows(self.vlm, self.coordinate_ids().flatten())
        self.readout = choose_readout(readout, self.model.config, self.codec)
        self.readout.store(self.model.config)
        setattr(self.model.config, CODEC_KEY, self.codec.style)
        self.recall = AreaRecallBySource()

    def as_turn(self, row: dict[str, Any], image: bool) -> Turn:
        if not _is_located(row):
            return super().as_turn(row, image)
        answer = self.codec.encode(Region(*row["region"]))
        return self.prompts.turn([(localizer_prompt(row["question"]), answer)], image, clean=False)

    def validation_step(self, batch: dict[str, Any], index: int) -> dict[str, Any]:
        """Locates what has a true region and scores it; returns the regions, in order, None for other questions."""
        asked = [row for rows in batch["questions"] for row in rows]
        found = self.located(batch, [[_is_located(row) for row in rows] for rows in batch["questions"]])
        scored = [(one, row) for one, row in zip(found, asked) if one is not None]
        self.recall.update(
            [one.region for one, _ in scored],
            [Region(*row["region"]) for _, row in scored],
            [row.get("source") or "" for _, row in scored],
            [row.get("valid", True) for _, row in scored],
            [one.malformed for one, _ in scored],
        )
        return {"regions": [None if one is None else one.region for one in found]}

    def predict_step(self, batch: Any, index: int) -> list[dict[str, Any]]:
        """One dict per real sample: key, region (the whole image where there is none to see), and its probability.

        Batches are this module's, or ``{"samples": [...], "valid": [...]}``.
        """
        if isinstance(batch, Mapping) and "samples" in batch:
            batch = self.collate(_marked(batch))
        found = self.located(batch, [[image is not None] * len(rows) for rows, image in _documents(batch)])
        asked = [row for rows in batch["questions"] for row in rows]
        return [
            {
                "key": row["key"],
                "region": list((one.region if one else Region.full()).as_tuple()),
                "probability": one.probability if one else None,
            }
            for one, row in zip(found, asked)
            if row.get("valid", True)
        ]

    def locate(self, batch: dict[str, Any]) -> list[Region | None]:
        """Regions of the batch's questions, in order; None where a question has no true one."""
        found = self.located(batch, [[_is_located(row) for row in rows] for rows in batch["questions"]])
        return [None if one is None else one.region for one in found]

    @torch.no_grad()
    def located(self, batch: dict[str, Any], wanted: list[list[bool]]) -> list[Located | None]:
        """Locate those of the batch's questions that are ``wanted``, in order; None for the others.

        The model runs equally often whatever is wanted, also where nothing is: sharded processes wait for one another.
        """
        guess = {"region": Region.full().as_tuple(), "localize": True}
        asked = [[{**row, **guess} for row in rows] for rows in batch["questions"]]
        due = [
            ([row for row, want in zip(rows, wants) if want], image)
            for rows, wants, image in zip(asked, wanted, pictures_of(batch))
        ]
        due = [(rows, image) for rows, image in due if rows] or [([{"question": "?", **guess}], 0)]
        rows = self._rows({**batch, "questions": [rows for rows, _ in due], "images": [image for _, image in due]}, 1)
        prompts = prefill_packed(self.vlm, rows.packed, rows.features)
        located = self._read(prompts)
        for found, questions in zip(located, rows.asked):
            for one, row in zip(found, questions):
                row["located"] = one
        return [row.get("located") for rows in asked for row in rows]

    def _read(self, prompts: Prompts) -> list[list[Located]]:
        count = prompts.hidden_BND.shape[1]
        if not self.codec.added_tokens:
            flat = [self._parse(ids) for ids in decode_freely(prompts, MAX_NEW_TOKENS).flatten(0, 1).tolist()]
        elif self.readout.stepwise:
            found_BN4, p_BN = decode(prompts, self.coordinate_ids(), self.readout.side_coverage)
            regions = [Region(*row) for row in found_BN4.flatten(0, 1).tolist()]
            flat = [Located(region, p) for region, p in zip(regions, p_BN.flatten().tolist())]
        else:
            known = distribution(prompts, self.coordinate_ids())
            regions = known.read(self.readout)
            flat = [Located(region, p) for region, p in zip(regions, known.probability(regions))]
        return [flat[start : start + count] for start in range(0, len(flat), count)]

    def _parse(self, ids: list[int]) -> Located:
        ends = self.model.generation_config.eos_token_id
        ends = {self.tokenizer.eos_token_id, *(ends if isinstance(ends, list) else [ends])}
        answer = ids[: next((i for i, token in enumerate(ids) if token in ends), len(ids))]
        region = self.codec.decode(self.tokenizer.decode(answer))
        return Located(region or Region.full(), malformed=region is None)

    def coordinate_ids(self) -> Tensor:
        """Token ids (2, 8) of the coordinates 0..7 of x and of y; (2, 0) with the codec ``digits``."""
        ids = self.tokenizer.convert_tokens_to_ids(list(self.codec.added_tokens))
        return torch.tensor(ids, dtype=torch.long).reshape(2, -1)

    def on_validation_epoch_end(self) -> None:
        scores = self.recall.compute()
        logged = {f"val/{k}": float(v) for k, v in scores.items() if k.partition("/")[0] != "n"}
        self.log_dict({k: v for k, v in logged.items() if k.count("/") == 1}, prog_bar=True)
        self.log_dict({k: v for k, v in logged.items() if k.count("/") > 1})
        self.recall.reset()


def _is_located(row: dict[str, Any]) -> bool:
    """Whether a question's region is a truth to learn; the testbed's always is."""
    located: bool = row.get("localize", True)
    return located


def _documents(batch: dict[str, Any]) -> list[tuple[list[dict[str, Any]], int | None]]:
    return list(zip(batch["questions"], pictures_of(batch)))


def _marked(batch: Mapping[str, Any]) -> list[Sample]:
    samples = list(batch["samples"])
    flags = batch.get("valid", [True] * len(samples))
    return [replace(sample, valid=bool(flag) and sample.valid) for sample, flag in zip(samples, flags, strict=True)]


def add_tokens(model: Any, tokenizer: Any, tokens: Any) -> bool:
    """Add ``tokens`` to tokenizer and embedding table, which only grows (Qwen2-VL's is padded beyond its vocabulary).

    New rows start at the mean of the old ones plus noise at a tenth of their spread. Returns whether any were added.
    """
    if not tokenizer.add_tokens(list(tokens), special_tokens=True):
        return False
    old = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > old:
        model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    ids = torch.as_tensor(tokenizer.convert_tokens_to_ids(list(tokens)))
    for table in {id(t): t for t in (model.get_input_embeddings(), model.get_output_embeddings())}.values():
        with torch.no_grad():
            known = table.weight[: min(old, len(tokenizer) - len(ids))]
            noise = torch.randn(len(ids), known.shape[1], dtype=known.dtype)
            table.weight[ids] = known.mean(0) + 0.1 * known.std() * noise
    return True


def lay_out_coordinates(model: Any, ids_2G: Tensor) -> None:
    """Start the rows of coordinates 0..7 on a parabola, so that a position is decoded by a linear map.

    Row i of an axis, counted from its middle (-3.5 to 3.5), is the common start plus ``i u - (i^2 - m) / 4 v`` for two
    random directions of the axis and the mean m of all i^2. A hidden state with ``h u = s c`` and ``h v = 2 s`` then
    gives the logit ``-s / 2 (i - c)^2`` up to a constant: the coordinate nearest to c wins, and c is a linear function
    of what the tower knows of a box. From unordered rows the decoder has to learn eight thresholds per side.
    """
    step_G = torch.arange(GRID) - (GRID - 1) / 2
    for table in {id(t): t for t in (model.get_input_embeddings(), model.get_output_embeddings())}.values():
        with torch.no_grad():
            start = table.weight[ids_2G.flatten()].mean(0)
            scale = table.weight.norm(dim=1).mean() / step_G.max()
            for ids_G in ids_2G:
                u, v = torch.nn.functional.normalize(torch.randn(2, len(start)), dim=1) * scale
                curve_GD = step_G[:, None] * u - (step_G[:, None] ** 2 / 2 - (step_G**2 / 2).mean()) / 2 * v
                table.weight[ids_G] = (start + curve_GD).to(table.weight.dtype)
