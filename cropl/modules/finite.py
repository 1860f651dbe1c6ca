"""Watches loss and gradients of every optimizer step: what is no number stops all processes before the update.

What it judges is the same number on every process, so that all decide alike and none waits for another.
"""

from __future__ import annotations

import json
import math
import statistics
from collections import deque
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from cropl.errors import RunError

WINDOW = 128
"""Steps over which a spike is a spike."""
LEAST = 32
"""Steps before anything can be one."""
_TOLD = 8


class Watch:
    """Of one process: the samples of the current step, and losses and gradient norms of the last steps.

    Args:
        sigma: a step whose loss or gradient norm lies more than this many standard deviations above the mean of the
            last ones is a spike; None for no spikes.
    """

    def __init__(self, sigma: float | None = None):
        if sigma is not None and sigma <= 0:
            raise ValueError(f"skip_spikes {sigma}: must be positive, such as 6, or null")
        self.sigma = sigma
        self.batches: list[tuple[list[str], Tensor | None]] = []
        self.history: dict[str, deque[float]] = {"loss": deque(maxlen=WINDOW), "norm": deque(maxlen=WINDOW)}
        self.skipped = 0

    def begin(self, batch: Any) -> None:
        """A batch comes."""
        self.batches.append((sample_keys(batch), None))

    def loss(self, summed: Tensor) -> None:
        """The loss of the batch that came last."""
        if self.batches:
            self.batches[-1] = (self.batches[-1][0], summed)

    def end(self, trainer: L.Trainer, loss: float, norm: float) -> bool:
        """Judge a step: whether it is a spike, and is to be left out.

        Args:
            trainer: says which step it is, and where to write.
            loss: of the step, over all processes.
            norm: of its gradient, over all processes; 0 where it is not known.

        Raises:
            RunError: in all processes, one of them is no finite number.
        """
        batches, self.batches = self.batches, []
        if not (math.isfinite(loss) and math.isfinite(norm)):
            raise RunError(report(trainer, loss, norm, batches))
        return self._spike({"loss": loss, "norm": norm}) if self.sigma is not None else False

    def _spike(self, now: dict[str, float]) -> bool:
        spike = False
        for name, value in now.items():
            past = self.history[name]
            limit = math.inf
            if len(past) >= LEAST:
                limit = statistics.fmean(past) + float(self.sigma or 0) * statistics.pstdev(past)
            spike |= value > limit
            past.append(min(value, limit))  # so that one spike does not hide the next, and a new level becomes usual
        self.skipped += spike
        return spike

    def state_dict(self) -> dict[str, Any]:
        """What a continued training needs to decide alike."""
        return {"skipped": self.skipped, **{name: list(past) for name, past in self.history.items()}}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from what :meth:`state_dict` gave."""
        self.skipped = state["skipped"]
        for name, past in self.history.items():
            past.extend(state[name])


def report(trainer: L.Trainer, loss: float, norm: float, batches: list[tuple[list[str], Tensor | None]]) -> str:
    """The message for a step that is no number, with the samples of the processes it came from; all call it.

    All that is known is written to ``nonfinite-step-N.json`` in the log folder.
    """
    mine = [{"loss": None if lost is None else float(lost), "samples": keys} for keys, lost in batches]
    told: list[Any] = [mine]
    if dist.is_available() and dist.is_initialized():
        told = [None] * dist.get_world_size()
        dist.all_gather_object(told, mine)
    guilty = {rank for rank, each in enumerate(told) if any(not math.isfinite(b["loss"] or 0) for b in each)}
    batch_wise = [
        (rank, batch)
        for rank, each in enumerate(told)
        for batch in each
        if not math.isfinite(batch["loss"] or 0) or not guilty
    ]
    keys = [key for _, batch in batch_wise for key in batch["samples"]]
    folder = Path(trainer.log_dir or trainer.default_root_dir)  # a collective: on all processes
    file = folder / f"nonfinite-step-{trainer.global_step:06d}.json"
    if trainer.is_global_zero:
        said = {"step": trainer.global_step, "loss": loss, "gradient_norm": norm, "processes": told}
        folder.mkdir(parents=True, exist_ok=True)
        file.write_text(json.dumps(said, indent=1), encoding="utf-8")
    what = f"the loss is {loss}" if not math.isfinite(loss) else f"the gradient's norm is {norm}"
    where = f" in process {', '.join(map(str, sorted(guilty)))}" if guilty else ""
    shown = ", ".join(keys[:_TOLD]) + (f" and {len(keys) - _TOLD} more" if len(keys) > _TOLD else "")
    return (
        f"step {trainer.global_step}: {what}{where}, with the samples {shown or '(without keys)'}; all are in {file}. "
        "Nothing was updated and no checkpoint was overwritten: continue from the last one with a lower learning rate, "
        "or without these samples"
    )


def sample_keys(batch: Any) -> list[str]:
    """The samples of a batch: their keys, or the questions of those that have none."""
    if not isinstance(batch, dict):
        return [key for each in batch if (key := getattr(each, "key", None))] if isinstance(batch, list) else []
    rows = [row for document in batch.get("questions", []) for row in document if isinstance(row, dict)]
    return list(dict.fromkeys(str(row.get("key") or row.get("question")) for row in rows))


def gradient_norm(module: nn.Module) -> Tensor:
    """The 2-norm of all gradients of a module, over all processes that it is sharded over. All of them call it."""
    own = [parameter.grad for parameter in module.parameters() if parameter.grad is not None]
    plain = [grad for grad in own if not isinstance(grad, DTensor)]
    sharded = [grad for grad in own if isinstance(grad, DTensor)]
    norms = [nn.utils.get_total_norm(grads) for grads in (plain, sharded) if grads]
    whole = [norm.full_tensor() if isinstance(norm, DTensor) else norm for norm in norms]
    return torch.stack([norm.float() for norm in whole]).norm() if whole else torch.zeros(())
