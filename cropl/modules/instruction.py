"""Teaches a vision-language model to answer: projector (or merger) and decoder train, the vision tower stays frozen."""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torchmetrics import MeanMetric

from cropl.data.collate import SampleCollate
from cropl.data.packing import IGNORE, Document, Turn, fit, rows_of
from cropl.metrics.answer import QUESTION_KINDS, AnswerAccuracy
from cropl.models.attention import watched
from cropl.models.card import Card
from cropl.models.export import write_checkpoint
from cropl.models.packed import PackedPrompts, packed_logits, packed_losses, places
from cropl.models.tuning import Tune, check_tuning, choose_trained
from cropl.models.vlm import load_vlm
from cropl.modules.documents import Picture, Rows, Shown, origins, pictures_of, strided, unseen
from cropl.modules.evidence import EvidenceLoss
from cropl.modules.token_loss import TokenLossModule, Weighting
from cropl.testbed import weights


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
        tune: ``full`` trains projector (or merger) and decoder; ``lora`` the projector and adapters in the decoder;
            ``projector`` the projector alone. The tower is always frozen.
        lora: ``rank``, ``alpha``, ``dropout``, ``targets`` of :func:`~cropl.models.lora.add_lora`, for ``tune: lora``.
        dtype: of the loaded weights, ``float32`` or ``bfloat16``; what trains becomes float32 in any case.
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
        tune: Tune = "full",
        lora: dict[str, Any] | None = None,
        dtype: Literal["float32", "bfloat16"] = "float32",
        **options: Any,
    ):
        super().__init__(loss_weighting, **options)
        check_tuning(tune, lora)
        self.base, self.checkpoint = checkpoint, weights.resolve(checkpoint)
        self.stride, self.tune = stride, tune
        self.max_turns, self.max_tokens = max_turns, max_tokens
        self.vlm = load_vlm(self.checkpoint, dtype=getattr(torch, dtype), device="cpu", **(model_options or {}))
        self.model: Any = self.vlm.model
        choose_trained(self.vlm, tune, lora, freeze_projector)
        self.tokenizer = self.vlm.tokenizer
        self.evidence_weight = evidence_weight
        self.evidence = EvidenceLoss(self.vlm, evidence_layers) if evidence_weight else None
        self.prompts = PackedPrompts(self.vlm)
        self.computed: tuple[list[int], int] = ([], 0)  # in the last step: each document's tokens; supervised tokens
        self.accuracy = AnswerAccuracy(kinds)
        self.loss = MeanMetric(nan_strategy="disable")  # over all processes' tokens, of which one may have none

    @property
    def lasting_units(self) -> Collection[int]:
        """The evidence loss uses the projections of its layers behind their forward."""
        return self.evidence.layers if self.evidence else ()

    @property
    def collate(self) -> SampleCollate:
        """Makes this module's batches of samples; a data module of samples asks for it."""
        return SampleCollate(self.vlm.prepare)

    def forward(self, batch: dict[str, Any], stride: int = 1) -> tuple[Rows, Tensor, Tensor]:
        """Packed rows with the logits (T, vocabulary) and targets (T,) of their supervised tokens."""
        rows = self._rows(batch, stride)
        return rows, *packed_logits(self.vlm, rows.packed, rows.features)

    def _rows(self, batch: dict[str, Any], stride: int) -> Rows:
        shown, idle = self.documents(batch, stride)
        documents: list[Document] = []
        cut: list[bool] = []
        for one in shown:
            grid, cell_V = (None, torch.arange(0)) if one.picture is None else (one.picture.grid, one.picture.cell_V)
            prefix, positions = self.prompts.prefix(grid, cell_V)
            whole = [self.as_turn(row, one.picture is not None) for row in one.asked]
            turns = [self._trained(turn, row, self.max_tokens - len(prefix)) for turn, row in zip(whole, one.asked)]
            cut += [len(turn.ids) < len(before.ids) for turn, before in zip(turns, whole)]
            documents.append(Document(prefix, positions, turns))
        self._lengths = [len(document) for document in documents]
        order = rows_of(self._lengths)
        pictures = [shown[i].picture for row in order for i in row]
        return Rows(
            self.prompts.pack([[documents[i] for i in row] for row in order]).to(self.device),
            [picture.tokens_VD for picture in pictures if picture is not None],
            [[asked for i in row for asked in shown[i].asked] for row in order],
            [[each for i in row for each in shown[i].evidence] for row in order],
            idle,
            sum(cut) / max(1, len(cut)),
        )

    def documents(self, batch: dict[str, Any], stride: int = 1) -> tuple[list[Shown], list[Tensor]]:
        """What the rows are made of: one document for each of the batch's, with all its questions or some of them.

        Also returns the visual tokens (V, D) of pictures that no document shows.
        """
        pictures = self.pictures(batch, stride)
        numbered = zip(batch["questions"], pictures_of(batch))
        shown = [
            Shown.of(self.drawn(rows), None if image is None else pictures[image], evidence=bool(self.evidence))
            for rows, image in numbered
        ]
        return shown, [pictures[image].tokens_VD for image in unseen(batch)]

    def pictures(self, batch: dict[str, Any], stride: int = 1) -> list[Picture]:
        """What the language model gets of each of the batch's pictures."""
        made = []
        for feature_VD, patches in zip(self.vlm.encode_prepared(batch["pixels"], batch["grids"]), batch["grids"]):
            grid = self.vlm.token_shape(patches)
            keep_V = strided(grid, stride) if stride > 1 else torch.arange(grid[0] * grid[1])
            made.append(Picture(feature_VD[keep_V.to(feature_VD.device)], grid, keep_V))
        return made

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
            loss_T, right_T = packed_losses(self.vlm, packed, rows.features)
        self.computed = (self._lengths, len(right_T))
        loss, weight = self.summed(loss_T, *origins(rows))
        self.log_dict({"train/padding": packed.padding, "train/cut": rows.cut}, batch_size=len(packed.input_ids_BS))
        if len(right_T):
            self.log("train/token_accuracy", right_T.float().mean(), prog_bar=True, batch_size=len(right_T))
        if self.evidence:
            missed = self.evidence(seen, packed, rows.evidence)
            self.log("train/evidence", (-missed).exp(), prog_bar=True, batch_size=max(1, len(right_T)))
            loss = loss + self.evidence_weight * weight * missed
        for idle_VD in rows.idle:  # all that trains takes part in every step, or processes would wait for one another
            loss = loss + 0 * idle_VD.sum()
        return loss

    def validation_step(self, batch: dict[str, Any], index: int) -> dict[str, Any]:
        """Greedy answers, teacher-forced: an answer is right where every one of its tokens is the most probable.

        Returns ``answers``, what was said to each of the batch's questions.
        """
        rows, logits, targets = self(batch, self.stride)
        said = logits.argmax(1)
        right = (said == targets).tolist()
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
        told: dict[int, list[int]] = {}
        for (b, turn), token in zip(where, said.tolist()):
            told.setdefault(id(rows.asked[b][turn]), []).append(token)
        given = {key: self.tokenizer.decode(ids, skip_special_tokens=True) for key, ids in told.items()}
        return {"answers": [given.get(id(row)) for asked in batch["questions"] for row in asked]}

    def on_validation_epoch_end(self) -> None:
        scores = self.accuracy.compute()
        self.log_dict({f"val/{name}": value for name, value in scores.items()}, prog_bar=True)
        self.log("val/loss", self.loss.compute())
        self.accuracy.reset()
        self.loss.reset()

    def export(self, folder: Path, dtype: str | None = None) -> None:
        """Write model, tokenizer, processor and model card as a ``transformers`` folder; all processes call this."""
        write_checkpoint(self.vlm, folder, dtype, self.card(), self.beside())

    def card(self) -> Card:
        """What an export says of itself."""
        return Card(base=self.base, **self.facts)

    def beside(self) -> Callable[[Path], Any] | None:
        """Writes further files of an export into the folder that it is given, on the first process."""
        return None

    def drawn(self, rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """The questions of a document that are trained on this time; all of them in validation."""
        if not self.training or len(rows) <= self.max_turns:
            return rows
        return random.sample(rows, self.max_turns)
