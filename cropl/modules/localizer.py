"""Fine-tunes a localizer (paper, 3.2 and 4.1): the vision tower frozen, the merger and the language model trained."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from cropl.data.packing import Turn
from cropl.grid import GRID, Region
from cropl.metrics.area import AreaRecall
from cropl.models.localizer import COVERAGE_KEY, check_coverage, coordinates, stored_coverage
from cropl.modules.instruction import InstructionModule
from cropl.modules.token_loss import Weighting
from cropl.prompt import RegionCodec, localizer_prompt


class LocalizerModule(InstructionModule):
    """Trains Appendix A's template: the question with its instruction, answered by the region's coordinates.

    Args:
        checkpoint: folder or name of the Qwen2-VL model to start from.
        codec: ``tokens`` (16 added coordinate tokens, new rows of the embedding table) or ``digits``.
        coverage: of validation and of the exported checkpoint, see :class:`~cropl.models.localizer.Localizer`; 0 takes
            the most probable coordinates, None what ``checkpoint`` has.
        max_tokens, model_options, freeze_projector, evidence_weight, loss_weighting: see :class:`InstructionModule`.

    Batches are those of :class:`InstructionModule`; each question also has its ``region`` on the 8 x 8 grid. One whose
    ``localize`` is False has no evidence: it is trained as the conversation that it is (the paper's mix has general
    answers too), and not scored. Validation decodes as inference does, constrained and step by step, and logs the
    paper's four recall columns (Table 9).
    """

    def __init__(
        self,
        checkpoint: str,
        codec: str = "tokens",
        coverage: float | None = None,
        max_turns: int = 10,
        max_tokens: int = 2048,
        model_options: dict[str, Any] | None = None,
        freeze_projector: bool = False,
        evidence_weight: float = 0.0,
        loss_weighting: Weighting = "token",
        lr: float = 2e-5,
        weight_decay: float = 0.01,
        warmup: float = 0.03,
        muon: bool = False,
    ):
        super().__init__(
            checkpoint, max_turns=max_turns, max_tokens=max_tokens, model_options=model_options,
            freeze_projector=freeze_projector, evidence_weight=evidence_weight, loss_weighting=loss_weighting,
            lr=lr, weight_decay=weight_decay, warmup=warmup, muon=muon,
        )  # fmt: skip
        self.codec = RegionCodec(codec)  # type: ignore[arg-type]
        if add_tokens(self.model, self.tokenizer, self.codec.added_tokens):
            lay_out_coordinates(self.model, self.coordinate_ids())
        if coverage is None:
            coverage = stored_coverage(self.model.config)
        self.coverage = check_coverage(coverage, self.codec)
        setattr(self.model.config, COVERAGE_KEY, self.coverage)
        self.recall = AreaRecall()

    def as_turn(self, row: dict[str, Any], image: bool) -> Turn:
        if not _is_located(row):
            return super().as_turn(row, image)
        answer = self.codec.encode(Region(*row["region"]))
        return self.prompts.turn([(localizer_prompt(row["question"]), answer)], image, clean=False)

    def validation_step(self, batch: dict[str, Any], index: int) -> dict[str, Any]:  # type: ignore[override]
        """Constrained decoding, one coordinate at a time, on the packed rows; returns the regions."""
        predicted = self.locate(batch)
        asked = [row for rows in batch["questions"] for row in rows]
        scored = [(region, row) for region, row in zip(predicted, asked) if region is not None]
        self.recall.update(
            [region for region, _ in scored],
            [Region(*row["region"]) for _, row in scored],
            [row.get("valid", True) for _, row in scored],
        )
        return {"regions": predicted}

    @torch.no_grad()
    def locate(self, batch: dict[str, Any]) -> list[Region | None]:
        """Regions of the batch's questions, in order, one coordinate after the other; None where there is none."""
        guessed = [[{**row, "region": (0, 0, 7, 7)} for row in rows] for rows in batch["questions"]]
        images = batch.get("images", range(len(guessed)))
        due = [([row for row in rows if _is_located(row)], image) for rows, image in zip(guessed, images)]
        due = [(rows, image) for rows, image in due if rows]
        asked = {**batch, "questions": [rows for rows, _ in due], "images": [image for _, image in due]}
        codes = self.coordinate_ids().to(self.device)
        for step in range(4 if due else 0):
            packed_rows, logits, targets = self(asked)
            flat = [row for rows in packed_rows.asked for row in rows]  # in the order of their logits
            at_coordinates = logits[torch.isin(targets, codes)].reshape(len(flat), 4, -1)
            scores_BG = at_coordinates[:, step, codes[step % 2]]
            if step >= 2:
                least = torch.tensor([row["region"][step - 2] for row in flat], device=self.device)
                lower_BG = torch.arange(GRID, device=self.device) < least[:, None]
                scores_BG = scores_BG.masked_fill(lower_BG, float("-inf"))
            for row, chosen in zip(flat, coordinates(scores_BG, step, self.coverage).tolist()):
                row["region"] = (*row["region"][:step], chosen, *(GRID - 1 for _ in range(3 - step)))
        return [Region(*row["region"]) if _is_located(row) else None for rows in guessed for row in rows]

    def coordinate_ids(self) -> Tensor:
        """Token ids (2, 8) of the coordinates 0..7 of x and of y, in the codec's style."""
        tokens = list(self.codec.added_tokens) or [str(i) for i in range(GRID)] * 2
        ids = [self.tokenizer(token, add_special_tokens=False)["input_ids"] for token in tokens]
        if any(len(one) != 1 for one in ids):
            raise ValueError("this tokenizer writes a coordinate as several tokens: use the codec 'tokens'")
        return torch.tensor(ids).reshape(2, GRID)

    def on_validation_epoch_end(self) -> None:
        scores = self.recall.compute()
        self.log_dict({f"val/{k}": float(v) for k, v in scores.items() if k != "n"}, prog_bar=True)
        self.recall.reset()


def _is_located(row: dict[str, Any]) -> bool:
    """Whether a question's region is a truth to learn; the testbed's always is."""
    located: bool = row.get("localize", True)
    return located


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
            table.weight[ids] = known.mean(0) + 0.1 * known.std() * torch.randn(len(ids), known.shape[1])
    return True


def lay_out_coordinates(model: Any, ids_2G: Tensor) -> None:
    """Start the rows of coordinates 0..7 on a parabola, so that a position is decoded by a linear map.

    Row i of an axis is the common start plus ``i u - (i^2 / 2) v`` for two random directions of the axis. A hidden
    state with ``h u = s c`` and ``h v = s`` then gives the logit ``-s / 2 (i - c)^2`` up to a constant: the coordinate
    nearest to c wins, and c is a linear function of what the tower knows of a box. From unordered rows the decoder has
    to learn eight thresholds per side.
    """
    step_G = torch.arange(GRID) - (GRID - 1) / 2
    for table in {id(t): t for t in (model.get_input_embeddings(), model.get_output_embeddings())}.values():
        with torch.no_grad():
            start = table.weight[ids_2G.flatten()].mean(0)
            scale = table.weight.norm(dim=1).mean() / step_G.max()
            for ids_G in ids_2G:
                u, v = torch.nn.functional.normalize(torch.randn(2, len(start)), dim=1) * scale
                curve_GD = step_G[:, None] * u - (step_G[:, None] ** 2 / 2 - (step_G**2 / 2).mean()) / 2 * v
                table.weight[ids_G] = start + curve_GD
