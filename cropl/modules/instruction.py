"""Teaches a vision-language model to answer: projector (or merger) and decoder train, the vision tower stays frozen."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric

from cropl.data.collate import SampleCollate
from cropl.data.packing import IGNORE, Document, Packed, Turn, fit, rows_of
from cropl.metrics.answer import QUESTION_KINDS, AnswerAccuracy
from cropl.models.attention import watched
from cropl.models.export import write_checkpoint
from cropl.models.packed import PackedPrompts, packed_logits, places
from cropl.models.vlm import load_vlm
from cropl.modules.evidence import EvidenceLoss
from cropl.modules.token_loss import TokenLossModule, Weighting
from cropl.testbed import weights


@dataclass
class Rows:
    """A batch as packed rows.

    Attributes:
        packed: the rows.
        features: visual tokens of their pictures, row by row.
        asked: each row's questions, as ``packed.turn_BS`` numbers them.
        evidence: of each question, bool (2, V) among its visual tokens, or None.
        idle: visual tokens of pictures that no document shows.
        cut: share of the questions that were too long.
    """

    packed: Packed
    features: list[Tensor]
    asked: list[list[dict[str, Any]]]
    evidence: list[list[Tensor | None]]
    idle: list[Tensor]
    cut: float


class InstructionModule(TokenLossModule):
    """Trains on conversations: texts, and questions about pictures; what fits into one row shares it.

    Args:
        checkpoint: folder or name of a LLaVA or Qwen2-VL model.
        stride: use every ``stride``-th row and column of visual tokens, at a random phase and at their own positions: a
            cheap first stage. 1 uses them all, as inference does.
        max_turns: questions of a picture that are trained on at a time, drawn anew at each visit.
        max_tokens: of a picture and one conversation in training; what is longer is cut, see
            :func:`~cropl.data.packing.fit`. ``train/cut`` is the share that is.
        loss_weighting: see :class:`~cropl.modules.token_loss.TokenLossModule`.
        kinds: kinds of questions that validation tells apart; "" is always known.
        model_options: further arguments of ``load_vlm``, such as Qwen2-VL's ``max_pixels``, or LLaVA's ``system``.
        freeze_projector: leave the projector (or merger) as it is, as well as the tower: where both come from dense
            labels, training from answers alone would only blur where things lie.
        evidence_weight: weight of a second loss that tells a tiny model what to look at; 0 leaves it out.
        evidence_layers: see :class:`~cropl.modules.evidence.EvidenceLoss`.

    Batches are those of :class:`~cropl.data.collate.SampleCollate`, or of the testbed's scenes: ``pixels``, ``grids``
    (patches), ``images`` (of each document the number of its picture or None; without it, document i shows picture i),
    ``questions`` (per document a list of kind, question, answer and, for the second loss, ``evidence``; ``turns``
    stands for question and answer where it is given).
    """

    def __init__(
        self,
        checkpoint: str,
        stride: int = 1,
        max_turns: int = 10,
        max_tokens: int = 2048,
        kinds: Sequence[str] = QUESTION_KINDS,
        model_options: dict[str, Any] | None = None,
        freeze_projector: bool = False,
        evidence_weight: float = 0.0,
        evidence_layers: tuple[int, ...] = (2, 3),
        loss_weighting: Weighting = "token",
        lr: float = 1e-3,
        weight_decay: float = 0.01,
        warmup: float = 0.03,
        muon: bool = False,
    ):
        super().__init__(loss_weighting, lr=lr, weight_decay=weight_decay, warmup=warmup, muon=muon)
        self.checkpoint, self.stride = weights.resolve(checkpoint), stride
        self.max_turns, self.max_tokens = max_turns, max_tokens
        self.vlm = load_vlm(self.checkpoint, dtype=torch.float32, device="cpu", **(model_options or {}))
        self.model: Any = self.vlm.model
        self.vlm.tower.requires_grad_(False)
        self.vlm.projector.requires_grad_(not freeze_projector)
        self.tokenizer = self.vlm.tokenizer
        self.evidence_weight = evidence_weight
        self.evidence = EvidenceLoss(self.vlm, evidence_layers) if evidence_weight else None
        self.prompts = PackedPrompts(self.vlm)
        self.accuracy = AnswerAccuracy(kinds)
        self.loss = MeanMetric(nan_strategy="disable")  # over all processes' tokens, of which one may have none

    @property
    def collate(self) -> SampleCollate:
        """Makes this module's batches of samples; a data module of samples asks for it."""
        return SampleCollate(self.vlm.prepare)

    def forward(self, batch: dict[str, Any], stride: int = 1) -> tuple[Rows, Tensor, Tensor]:
        """Packed rows with the logits (T, vocabulary) and targets (T,) of their supervised tokens."""
        rows = self._rows(batch, stride)
        return rows, *packed_logits(self.vlm, rows.packed, rows.features)

    def _rows(self, batch: dict[str, Any], stride: int) -> Rows:
        features = self.vlm.encode_prepared(batch["pixels"], batch["grids"])
        grids = [(rows // self.vlm.merge, columns // self.vlm.merge) for rows, columns in batch["grids"]]
        keeps = [_strided(grid, stride) if stride > 1 else torch.arange(grid[0] * grid[1]) for grid in grids]
        images = batch.get("images", range(len(batch["questions"])))
        drawn = [self._drawn(rows) for rows in batch["questions"]]
        documents: list[Document] = []
        cut: list[bool] = []
        for rows, image in zip(drawn, images):
            prefix, positions = self.prompts.prefix(*(None,) if image is None else (grids[image], keeps[image]))
            whole = [self.as_turn(row, image is not None) for row in rows]
            turns = [self._trained(turn, row, self.max_tokens - len(prefix)) for turn, row in zip(whole, rows)]
            cut += [len(turn.ids) < len(before.ids) for turn, before in zip(turns, whole)]
            documents.append(Document(prefix, positions, turns))
        order = rows_of([len(document) for document in documents])
        shown = [images[i] for row in order for i in row if images[i] is not None]
        evidence = [
            [row["evidence"][:, keeps[image]] if "evidence" in row else None for row in rows]
            for rows, image in zip(drawn, images)
        ]
        return Rows(
            self.prompts.pack([[documents[i] for i in row] for row in order]).to(self.device),
            [features[image][keeps[image].to(features[image].device)] for image in shown],
            [[asked for i in row for asked in drawn[i]] for row in order],
            [[each for i in row for each in evidence[i]] for row in order],
            [feature_VD for image, feature_VD in enumerate(features) if image not in shown],
            sum(cut) / max(1, len(cut)),
        )

    def _trained(self, turn: Turn, row: dict[str, Any], room: int) -> Turn:
        """In training a question is cut to ``room`` tokens, and has no labels where it does not count."""
        if not self.training:
            return turn
        turn = fit(turn, room)
        return turn if row.get("valid", True) else Turn(turn.ids, [IGNORE] * len(turn.ids))

    def as_turn(self, row: dict[str, Any], image: bool) -> Turn:
        """What is trained of a question that has a picture or not."""
        return self.prompts.turn(row.get("turns") or [(row["question"], row["answer"])], image)

    def training_step(self, batch: dict[str, Any], index: int) -> Tensor:
        rows = self._rows(batch, self.stride)
        packed = rows.packed
        with watched(self.vlm.decoder, self.evidence.layers if self.evidence else ()) as seen:
            logits, targets = packed_logits(self.vlm, packed, rows.features)
        loss, weight = self.summed(F.cross_entropy(logits, targets, reduction="none"), *_origins(rows))
        self.log_dict({"train/padding": packed.padding, "train/cut": rows.cut}, batch_size=len(packed.input_ids_BS))
        if len(targets):
            right = (logits.argmax(1) == targets).float().mean()
            self.log("train/token_accuracy", right, prog_bar=True, batch_size=len(targets))
        if self.evidence:
            missed = self.evidence(seen, packed, rows.evidence)
            self.log("train/evidence", (-missed).exp(), prog_bar=True, batch_size=max(1, len(targets)))
            loss = loss + self.evidence_weight * weight * missed
        for idle_VD in rows.idle:  # all that trains takes part in every step, or processes would wait for one another
            loss = loss + 0 * idle_VD.sum()
        return loss

    def validation_step(self, batch: dict[str, Any], index: int) -> None:
        """Greedy answers, teacher-forced: an answer is right where every one of its tokens is the most probable."""
        rows, logits, targets = self(batch, self.stride)
        right = (logits.argmax(1) == targets).tolist()
        row_T, turn_T = places(rows.packed)
        where = list(zip(row_T.tolist(), turn_T.tolist()))
        counted = torch.tensor([rows.asked[b][turn].get("valid", True) for b, turn in where], dtype=torch.bool)
        self.loss.update(F.cross_entropy(logits[counted], targets[counted], reduction="none"))
        correct: dict[tuple[int, int], bool] = {}
        for place, ok in zip(where, right):
            correct[place] = correct.get(place, True) and ok
        asked = [rows.asked[b][turn] for b, turn in correct]
        valid = [row.get("valid", True) for row in asked]
        self.accuracy.update(list(correct.values()), [row["kind"] for row in asked], valid)

    def on_validation_epoch_end(self) -> None:
        scores = self.accuracy.compute()
        self.log_dict({f"val/{name}": value for name, value in scores.items()}, prog_bar=True)
        self.log("val/loss", self.loss.compute())
        self.accuracy.reset()
        self.loss.reset()

    def export(self, folder: Path, dtype: str | None = None) -> None:
        """Write model, tokenizer and processor as a ``transformers`` folder."""
        write_checkpoint(self.vlm, folder, dtype)

    def _drawn(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        if not self.training or len(rows) <= self.max_turns:
            return rows
        return random.sample(rows, self.max_turns)


def _origins(rows: Rows) -> tuple[Tensor, Tensor, list[str]]:
    """Number of each supervised token's sample and of its source (-1: none), each (T,), and the sources' names."""
    row_T, turn_T = places(rows.packed)
    names = sorted({row["source"] for asked in rows.asked for row in asked if row.get("source")})
    table_BN = torch.full((len(rows.asked), max(map(len, rows.asked))), -1)
    for b, asked in enumerate(rows.asked):
        for n, row in enumerate(asked):
            table_BN[b, n] = names.index(row["source"]) if row.get("source") else -1
    return row_T * table_BN.shape[1] + turn_T, table_BN.to(row_T.device)[row_T, turn_T], names


def _strided(grid: tuple[int, int], stride: int) -> Tensor:
    """Indices of every ``stride``-th row and column, at a random phase."""
    rows, columns = grid
    row = torch.arange(int(torch.randint(stride, ())), rows, stride)
    column = torch.arange(int(torch.randint(stride, ())), columns, stride)
    return (row[:, None] * columns + column[None]).flatten()
