"""Pre-trains a vision tower and its projector on dense labels: kind, colour, word, centre and box on every patch.

End to end from answers alone, a tiny tower stays on its plateau; with labels for every patch it learns in minutes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cropl.models.card import Card
from cropl.models.export import write_checkpoint
from cropl.models.vlm import load_vlm
from cropl.modules.base import TrainingModule
from cropl.modules.finite import Watch, gradient_norm
from cropl.testbed import weights
from cropl.testbed.labels import IGNORE, KIND_NAMES
from cropl.testbed.world import COLORS, WORDS

# N patches and M visual tokens of all pictures of the batch, E tower width, D decoder width, V patches of one picture

_SIZES = {"kind": len(KIND_NAMES), "color": len(COLORS), "word": len(WORDS), "center": 1, "box": 4}


class DenseLabelModule(TrainingModule):
    """Trains tower and projector (or merger) of a LLaVA or Qwen2-VL checkpoint through a linear head on visual tokens.

    The head is thrown away afterwards; the tokens that it reads, those that the decoder gets, stay linear in labels.
    A projector that learns from answers alone loses what they seldom need, above all where a thing lies.

    ``windowed_share`` of the steps, the first ones, see four windows of a quarter of each picture instead of the whole
    (LLaVA only): what lies on a patch is seen nearby, and attention over a quarter of the tokens costs a sixteenth.

    A loss or a gradient that is no finite number, on any process, stops all of them before the update.

    Batches: ``pixels`` (list of tensors), ``grids`` (list of (rows, columns)), ``labels`` (N, 8).
    """

    def __init__(
        self,
        checkpoint: str,
        windowed_share: float = 0.0,
        lr: float = 2e-3,
        weight_decay: float = 0.01,
        warmup: float = 0.05,
        muon: bool = True,
    ):
        super().__init__(lr=lr, weight_decay=weight_decay, warmup=warmup, muon=muon)
        self.windowed_share = windowed_share
        self.watch = Watch()
        self.checkpoint = weights.resolve(checkpoint)
        self.vlm = load_vlm(self.checkpoint, dtype=torch.float32, device="cpu")
        self.model: Any = self.vlm.model
        if windowed_share and not _shows_windows(self.model.config):
            raise ValueError(f"windowed_share={windowed_share}: only a CLIP tower's last layer can be shown windows")
        self.model.requires_grad_(False)
        self.vlm.tower.requires_grad_(True)
        self.vlm.projector.requires_grad_(True)
        width = self.model.config.text_config.hidden_size
        self.patches = self.vlm.merge**2
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, self.patches * sum(_SIZES.values()))

    def forward(self, pixels: list[Tensor], grids: list[tuple[int, int]]) -> dict[str, Tensor]:
        """Logits per patch and label: a dict of (N, classes)."""
        return self._read(torch.cat(self.vlm.encode_prepared(pixels, grids)))

    def _read(self, tokens_MD: Tensor) -> dict[str, Tensor]:
        """Logits of every patch; a merged token answers for its patches, in the tower's order."""
        out_NC = self.head(self.norm(tokens_MD)).unflatten(1, (self.patches, -1)).flatten(0, 1)
        return dict(zip(_SIZES, out_NC.split(list(_SIZES.values()), dim=1)))

    def training_step(self, batch: dict, index: int) -> Tensor:
        windowed = self.trainer.global_step < self.windowed_share * self.trainer.estimated_stepping_batches
        losses, scores = self._scored(*self._windows(batch)) if windowed else self._step(batch)
        self.log_dict({f"train/{k}": v for k, v in scores.items()}, batch_size=len(batch["pixels"]))
        loss = torch.stack(list(losses.values())).sum()
        self.watch.loss(loss.detach())
        self.log("train/loss", loss, prog_bar=True, batch_size=len(batch["pixels"]))
        return loss

    def on_train_start(self) -> None:
        """Nothing remains of a run that was stopped within accumulated batches."""
        self.watch.batches = []

    def on_train_batch_start(self, batch: dict, batch_idx: int) -> None:
        self.watch.begin(batch)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Judge the step ahead of its update, by what is the same on all processes.

        Raises:
            RunError: on all processes, the step's loss or gradient is no finite number on one of them.
        """
        lost = torch.stack([lost for _, lost in self.watch.batches if lost is not None]).mean()
        loss: Any = self.trainer.strategy.reduce(lost, reduce_op="mean")
        self.watch.end(self.trainer, *torch.stack([loss, gradient_norm(self).to(loss)]).tolist())

    def validation_step(self, batch: dict, index: int) -> None:
        _, scores = self._step(batch)
        self.log_dict({f"val/{k}": v for k, v in scores.items()}, batch_size=len(batch["pixels"]), prog_bar=True)

    def _step(self, batch: dict) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        return self._scored(self(batch["pixels"], batch["grids"]), batch["labels"])

    def _windows(self, batch: dict) -> tuple[dict[str, Tensor], Tensor]:
        """Logits and labels (N, 8) of four random windows per picture, each half as wide and high."""
        tower: Any = self.vlm.tower
        count = len(batch["pixels"])
        rows, columns = batch["grids"][0]
        tokens_BSE = tower.embeddings(torch.stack(batch["pixels"]))
        labels_BV8 = batch["labels"].unflatten(0, (count, -1))
        y_N = torch.randint(rows // 2 + 1, (4 * count,), device=self.device)
        x_N = torch.randint(columns // 2 + 1, (4 * count,), device=self.device)
        inside = torch.arange(rows // 2, device=self.device)[:, None] * columns + torch.arange(
            columns // 2, device=self.device
        )
        place_NV = (y_N * columns + x_N)[:, None] + inside.flatten()
        which_N1 = torch.arange(count, device=self.device).repeat(4)[:, None]
        window_NSE = torch.cat([tokens_BSE[which_N1, :1].squeeze(2), tokens_BSE[which_N1, place_NV + 1]], dim=1)
        hidden_NSE = tower.encoder(inputs_embeds=tower.pre_layrnorm(window_NSE)).last_hidden_state
        tokens_MD = self.vlm.projector(hidden_NSE[:, 1:]).flatten(0, 1)
        return self._read(tokens_MD), labels_BV8[which_N1, place_NV].flatten(0, 1)

    def _scored(self, logits: dict[str, Tensor], labels: Tensor) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
        """Losses and scores by label."""
        targets = {name: labels[:, i].long() for i, name in enumerate(("kind", "color", "word"))}
        # four patches in five are background: at full weight they drown what lies on the others
        rare = logits["kind"].new_ones(_SIZES["kind"])
        rare[0] = 0.2
        weights = {"kind": rare, "color": None, "word": None}
        losses = {n: F.cross_entropy(logits[n], t, weights[n], ignore_index=IGNORE) for n, t in targets.items()}
        scores = {}
        for name, target in targets.items():
            asked = target > 0 if name == "kind" else target != IGNORE
            scores[name] = (logits[name].argmax(1)[asked] == target[asked]).float().mean()
        center = logits["center"][:, 0]
        losses["center"] = F.binary_cross_entropy_with_logits(center, labels[:, 3], pos_weight=center.new_tensor(10.0))
        on_thing = targets["kind"] > 0
        error = (logits["box"] - labels[:, 4:8])[on_thing].abs().mean()
        losses["box"] = 4 * error
        scores["box_error"] = error
        scores["center"] = (center[labels[:, 3] > 0] > 0).float().mean()
        return losses, scores

    def export(self, folder: Path, dtype: str | None = None) -> None:
        """Write the whole checkpoint (with the trained tower) as a ``transformers`` folder."""
        write_checkpoint(self.vlm, folder, dtype, Card(**self.facts))


def _shows_windows(config: Any) -> bool:
    """Whether a window's tokens come out of the tower as :meth:`DenseLabelModule._windows` reads them."""
    is_clip = config.vision_config.model_type == "clip_vision_model"
    return is_clip and getattr(config, "vision_feature_layer", None) in (-1, config.vision_config.num_hidden_layers)
