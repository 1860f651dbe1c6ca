"""The loss over supervised tokens, with every token of an optimizer step at the same weight, wherever it was computed.

Lightning divides the loss of each batch by the number of accumulated batches, and data-parallel strategies average
gradients over processes: the mean of each batch's own mean, in which a token weighs the more, the fewer are beside it.
So each batch gives the sum over its tokens, and gradients are scaled once the whole window is known.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import Tensor

from cropl.modules.base import TrainingModule
from cropl.modules.finite import Watch, gradient_norm

Weighting = Literal["token", "sample"]

# T supervised tokens


class TokenLossModule(TrainingModule):
    """Base of modules whose ``training_step`` returns :meth:`summed`, not a mean.

    The gradient of an optimizer step is then that of the mean over the tokens of all its batches and processes. A
    window without any token has a gradient of zero.

    Args:
        loss_weighting: ``token``, or ``sample``: a sample's tokens share the weight of one, and the mean is over
            samples.
        skip_spikes: leave out the update of a step whose loss or gradient norm lies more than this many standard
            deviations above the mean of the last 128 steps; such as 6. None leaves none out.
        options: see :class:`~cropl.modules.base.TrainingModule`.

    Logs ``train/loss``, the mean over the tokens of a step, and ``train/loss/SOURCE`` for this process's tokens of each
    source (NaN in a step without any); ``train/gradient_norm`` before clipping, and ``train/skipped_steps`` where
    spikes are left out. A loss or a norm that is no finite number, on any process, stops all of them before the update.
    """

    def __init__(self, loss_weighting: Weighting = "token", skip_spikes: float | None = None, **options: Any):
        super().__init__(**options)
        self.watch = Watch(skip_spikes)
        if loss_weighting not in get_args(Weighting):
            raise ValueError(f"loss_weighting {loss_weighting!r}: must be 'token' or 'sample'")
        self.loss_weighting = loss_weighting
        self._window: Tensor
        self._sources: dict[str, Tensor]
        self._known: set[str] = set()
        self._start_window()

    def summed(self, loss_T: Tensor, sample_T: Tensor, source_T: Tensor, sources: list[str]) -> tuple[Tensor, Tensor]:
        """The weighted sum of a batch's losses, and the sum of its weights; both count for the step's window.

        A further loss that is a mean is to be multiplied by the sum of weights before it is added.

        Args:
            loss_T: loss of each token.
            sample_T: number of each token's sample in the batch.
            source_T: number of its source, -1 for none.
            sources: their names.
        """
        _, place_T, count = sample_T.unique(return_inverse=True, return_counts=True)
        loss_T = loss_T.float()
        weight_T = torch.ones_like(loss_T) if self.loss_weighting == "token" else 1 / count[place_T].float()
        weight = weight_T.new_tensor(len(loss_T) if self.loss_weighting == "token" else len(count))
        known_T = loss_T.detach()
        seen = torch.stack([weight, known_T.sum(), weight.new_tensor(len(known_T))])
        self.watch.loss(seen[1])
        self._window = self._window.to(seen.device) + seen
        for number, name in enumerate(sources):
            chosen_T = known_T[source_T == number]
            lost = torch.stack([chosen_T.sum(), weight.new_tensor(len(chosen_T))])
            self._sources[name] = self._sources[name] + lost if name in self._sources else lost
        return (loss_T * weight_T).sum(), weight

    def on_train_start(self) -> None:
        """Nothing remains of a run that was stopped within a window.

        Raises:
            ValueError: the strategy accumulates gradients where they cannot be scaled.
        """
        if self.trainer.strategy.handles_gradient_accumulation:
            name = type(self.trainer.strategy).__name__
            raise ValueError(f"{name} keeps gradients to itself: train with one device, ddp or an fsdp strategy")
        self._start_window()

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        self.watch.begin(batch)

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Scale gradients to the mean, before they are clipped; one reduction on every process in every step.

        Raises:
            RunError: on all processes, the step's loss or gradient is no finite number on one of them.
        """
        trainer = self.trainer
        window: Any = trainer.strategy.reduce(self._window.to(self.device), reduce_op="sum")
        norm = gradient_norm(self).to(window)
        weight, loss, tokens, norm = torch.cat([window, norm[None]]).tolist()
        scale = trainer.accumulate_grad_batches * trainer.world_size / weight if weight else 0.0
        for parameter in self.parameters():
            if parameter.grad is not None:
                parameter.grad.mul_(scale)
        if self.watch.end(trainer, loss / tokens if tokens else 0.0, norm * scale):
            optimizer.zero_grad()  # without gradients a step changes nothing
        if self.watch.sigma is not None:
            self.log("train/skipped_steps", float(self.watch.skipped))
        self.log("train/gradient_norm", norm * scale)
        if tokens:
            self.log("train/loss", loss / tokens, prog_bar=True)
        self._known |= set(self._sources)
        for name in sorted(
            self._known
        ):  # a logger repeats what is not logged anew: a source without tokens has no loss
            lost, count = self._sources[name].tolist() if name in self._sources else (0.0, 0.0)
            self.log(f"train/loss/{name}", lost / count if count else float("nan"))
        self._start_window()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        if self.watch.sigma is not None:
            checkpoint["spikes"] = self.watch.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        if self.watch.sigma is not None and "spikes" in checkpoint:
            self.watch.load_state_dict(checkpoint["spikes"])

    def _start_window(self) -> None:
        self._window = torch.zeros(3)  # weights, losses and tokens; no buffer: DDP would overwrite those of other ranks
        self._sources = {}
        self.watch.batches = []
