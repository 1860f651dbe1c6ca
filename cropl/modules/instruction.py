"""Teaches a vision-language model to answer: projector (or merger) and decoder train, the vision tower stays frozen."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cropl.data.collate import SampleCollate
from cropl.data.packing import Packed, Turn
from cropl.metrics.answer import QUESTION_KINDS, AnswerAccuracy
from cropl.models.attention import LayerInput, watched
from cropl.models.export import write_checkpoint
from cropl.models.packed import PackedPrompts, first_positions, packed_logits
from cropl.models.vlm import load_vlm
from cropl.modules.base import TrainingModule
from cropl.testbed import weights


class InstructionModule(TrainingModule):
    """Trains on the questions of each picture, packed in one row.

    Args:
        checkpoint: folder or name of a LLaVA or Qwen2-VL model.
        stride: use every ``stride``-th row and column of visual tokens, at a random phase and at their own positions: a
            cheap first stage. 1 uses them all, as inference does.
        max_turns: questions of a picture that are trained on at a time, drawn anew at each visit.
        kinds: kinds of questions that validation tells apart; "" is always known.
        model_options: further arguments of ``load_vlm``, such as ``attn_implementation``, or Qwen2-VL's ``max_pixels``.
        freeze_projector: leave the projector (or merger) as it is, as well as the tower: where both come from dense
            labels, training from answers alone would only blur where things lie.
        evidence_weight: weight of a second loss, minus the log of the attention that half of the heads of
            ``evidence_layers`` pay to the question's evidence, where the answer begins. In the layer before, the option
            whose letter is the answer looks at this letter; in the layer after, the answer looks at this option. A tiny
            model finds by itself what to look at only after a long plateau. 0 leaves it out.
        evidence_layers: consecutive 0-based decoder layers, with one more before and after them.

    Batches are those of :class:`~cropl.data.collate.SampleCollate`, or of the testbed's scenes: ``pixels``, ``grids``
    (patches), ``questions`` (per picture a list of kind, question, answer and, for the second loss, ``evidence``).
    """

    def __init__(
        self,
        checkpoint: str,
        stride: int = 1,
        max_turns: int = 10,
        kinds: Sequence[str] = QUESTION_KINDS,
        model_options: dict[str, Any] | None = None,
        freeze_projector: bool = False,
        evidence_weight: float = 0.0,
        evidence_layers: tuple[int, ...] = (2, 3),
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        warmup: float = 0.03,
        muon: bool = False,
    ):
        super().__init__(lr=lr, weight_decay=weight_decay, warmup=warmup, muon=muon)
        self.checkpoint, self.stride, self.max_turns = weights.resolve(checkpoint), stride, max_turns
        self.vlm = load_vlm(self.checkpoint, dtype=torch.float32, device="cpu", **(model_options or {}))
        self.model: Any = self.vlm.model
        self.vlm.tower.requires_grad_(False)
        self.vlm.projector.requires_grad_(not freeze_projector)
        self.tokenizer = self.vlm.tokenizer
        self.evidence_weight, self.evidence_layers = evidence_weight, tuple(evidence_layers)
        layers = self.vlm.num_layers
        if evidence_weight and not 1 <= min(self.evidence_layers) <= max(self.evidence_layers) <= layers - 2:
            raise ValueError(
                f"evidence_layers {list(self.evidence_layers)}: needs one more decoder layer before and after them, "
                f"and this model has {layers}; choose layers in 1..{layers - 2}, or evidence_weight 0"
            )
        self.prompts = PackedPrompts(self.vlm)
        self.accuracy = AnswerAccuracy(kinds)

    @property
    def collate(self) -> SampleCollate:
        """Makes this module's batches of samples; a data module of samples asks for it."""
        return SampleCollate(self.vlm.prepare)

    def forward(self, batch: dict[str, Any], stride: int = 1) -> tuple[Packed, Tensor, Tensor]:
        """Packed rows with the logits (T, vocabulary) and targets (T,) of their supervised tokens."""
        packed, features, _ = self._rows(batch, stride)
        return packed, *packed_logits(self.vlm, packed, features)

    def _rows(self, batch: dict[str, Any], stride: int) -> tuple[Packed, list[Tensor], list[list[Tensor]]]:
        """Packed rows, the features of their visual tokens, and each turn's evidence among these."""
        features = self.vlm.encode_prepared(batch["pixels"], batch["grids"])
        merge = self.vlm.merge
        prefixes, keeps = [], []
        for i, (rows, columns) in enumerate(batch["grids"]):
            grid = (rows // merge, columns // merge)
            keep_V = _strided(grid, stride) if stride > 1 else None
            features[i] = features[i] if keep_V is None else features[i][keep_V.to(features[i].device)]
            prefixes.append(self.prompts.prefix(grid, keep_V))
            keeps.append(slice(None) if keep_V is None else keep_V)
        drawn = [self._drawn(rows) for rows in batch["questions"]]
        packed = self.prompts.pack(prefixes, [[self.as_turn(row) for row in rows] for rows in drawn])
        evidence = [[row["evidence"][:, keep] for row in rows if "evidence" in row] for rows, keep in zip(drawn, keeps)]
        return packed.to(self.device), features, evidence

    def as_turn(self, row: dict[str, Any]) -> Turn:
        return self.prompts.turn(row["question"], row["answer"])

    def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
        packed, features, evidence = self._rows(batch, self.stride)
        first, last = min(self.evidence_layers), max(self.evidence_layers)
        guided = range(first - 1, last + 2) if self.evidence_weight else ()
        with watched(self.vlm.decoder, guided) as seen:
            logits, targets = packed_logits(self.vlm, packed, features)
        loss = F.cross_entropy(logits, targets)
        right = (logits.argmax(1) == targets).float().mean()
        self.log_dict({"train/loss": loss, "train/token_accuracy": right}, prog_bar=True, batch_size=len(targets))
        if not seen:
            return loss
        missed = self._missed(seen, packed, evidence)
        self.log("train/evidence", (-missed).exp(), prog_bar=True, batch_size=len(targets))
        return loss + self.evidence_weight * missed

    def _missed(self, layers: dict[int, LayerInput], packed: Packed, evidence: list[list[Tensor]]) -> Tensor:
        """Minus the mean log attention of the guided heads to what they should look at; 0 where nothing is asked."""
        row_T, position_T, turn_T = first_positions(packed)
        evidence_T2S = torch.zeros(len(row_T), 2, packed.input_ids_BS.shape[1], dtype=torch.bool, device=self.device)
        visual_BS = self.vlm.visual_mask(packed.input_ids_BS)
        for t, (row, turn) in enumerate(zip(row_T.tolist(), turn_T.tolist())):
            evidence_T2S[t][:, visual_BS[row]] = evidence[row][turn].to(self.device)
        option_TS = announced(packed, row_T, position_T)
        option_T, place_T = option_TS.nonzero(as_tuple=True)
        letter_T2S = torch.zeros(len(option_T), 2, option_TS.shape[1], dtype=torch.bool, device=self.device)
        letter_T2S[torch.arange(len(option_T)), :, place_T - 1] = True

        first, last = min(self.evidence_layers), max(self.evidence_layers)
        lost = []
        for index, layer in layers.items():
            if index < first:
                lost += self._lost(layer, packed, row_T[option_T], place_T, letter_T2S)
            else:
                wanted_T2S = option_TS[:, None].expand(-1, 2, -1) if index > last else evidence_T2S
                lost += self._lost(layer, packed, row_T, position_T, wanted_T2S)
        return torch.stack(lost).mean() if lost else evidence_T2S.new_zeros((), dtype=torch.float32)

    def _lost(
        self, layer: LayerInput, packed: Packed, row_T: Tensor, position_T: Tensor, wanted_T2S: Tensor
    ) -> list[Tensor]:
        """Minus the mean log attention of two quarters of the heads to ``wanted_T2S``; nothing if no row asks."""
        asked_T = wanted_T2S.any(2).all(1)
        if not asked_T.any():
            return []
        row_T, position_T = row_T[asked_T], position_T[asked_T]
        log_THS = layer.rows(row_T, position_T, packed.mask_B1SS[row_T, 0, position_T])
        heads = log_THS.shape[1] // 4
        guided_T2HS = log_THS[:, : 2 * heads].unflatten(1, (2, heads))
        seen_T2H = guided_T2HS.masked_fill(~wanted_T2S[asked_T][:, :, None], float("-inf")).logsumexp(-1)
        return [-seen_T2H.clamp(min=-20).mean()]

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        """Greedy answers, teacher-forced: an answer is right where every one of its tokens is the most probable."""
        packed, logits, targets = self(batch, self.stride)
        right = (logits.argmax(1) == targets).tolist()
        supervised_BS = packed.turn_BS >= 0
        where = list(zip(supervised_BS.nonzero()[:, 0].tolist(), packed.turn_BS[supervised_BS].tolist()))
        counted = torch.tensor([batch["questions"][b][turn].get("valid", True) for b, turn in where])
        if counted.any():
            loss = F.cross_entropy(logits[counted], targets[counted])
            self.log("val/loss", loss, batch_size=int(counted.sum()))
        correct: dict[tuple[int, int], bool] = {}
        for place, ok in zip(where, right):
            correct[place] = correct.get(place, True) and ok
        rows = [batch["questions"][b][turn] for b, turn in correct]
        valid = [row.get("valid", True) for row in rows]
        self.accuracy.update(list(correct.values()), [row["kind"] for row in rows], valid)

    def on_validation_epoch_end(self) -> None:
        scores = self.accuracy.compute()
        self.log_dict({f"val/{name}": value for name, value in scores.items()}, prog_bar=True)
        self.accuracy.reset()

    def export(self, folder: Path, dtype: str | None = None) -> None:
        """Write model, tokenizer and processor as a ``transformers`` folder."""
        write_checkpoint(self.vlm, folder, dtype)

    def _drawn(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if not self.training or len(rows) <= self.max_turns:
            return rows
        return random.sample(rows, self.max_turns)


def _strided(grid: tuple[int, int], stride: int) -> Tensor:
    """Indices of every ``stride``-th row and column, at a random phase."""
    rows, columns = grid
    row = torch.arange(int(torch.randint(stride, ())), rows, stride)
    column = torch.arange(int(torch.randint(stride, ())), columns, stride)
    return (row[:, None] * columns + column[None]).flatten()


def announced(packed: Packed, row_T: Tensor, position_T: Tensor) -> Tensor:
    """Bool (T, S): the tokens behind the answer in its own prompt (in "A red B blue", A announces red)."""
    allowed_TS = packed.mask_B1SS[row_T, 0, position_T]
    said_TS = (packed.input_ids_BS[row_T] == packed.labels_BS[row_T, position_T][:, None]) & allowed_TS
    said_TS[torch.arange(len(row_T), device=said_TS.device), position_T] = False
    return said_TS.roll(1, dims=1) & allowed_TS
