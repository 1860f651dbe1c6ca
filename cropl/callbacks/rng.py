"""Random states of all processes, so that a training that is continued draws what it would have drawn."""

from __future__ import annotations

import logging
import random
from typing import Any

import lightning as L
import numpy as np
import torch
from torch.utils.data import DataLoader

from cropl.callbacks.processes import gathered

_log = logging.getLogger(__name__)

State = dict[str, Any]


def capture() -> State:
    """The states of Python's, numpy's and torch's generators, and this process's GPU's, as numbers and tensors."""
    version, numbers, gauss = random.getstate()
    state: Any = np.random.get_state()
    kind, keys, position, has_gauss, cached = state
    return {
        "python": [version, torch.tensor(numbers), gauss],
        "numpy": [kind, torch.from_numpy(keys.astype(np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore(state: State) -> None:
    """Set what :func:`capture` gave; a GPU's only where there is one on both sides."""
    version, numbers, gauss = state["python"]
    random.setstate((version, tuple(numbers.tolist()), gauss))
    kind, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((kind, keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if state["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())


def of_all(state: State) -> list[State]:
    """Every process's state, by rank. All processes call it."""
    return gathered(state)


def restore_own(trainer: L.Trainer, states: list[State]) -> None:
    """Set this process's state from those of a checkpoint, if they are of as many processes."""
    if len(states) == trainer.world_size:
        restore(states[trainer.global_rank])
    elif trainer.is_global_zero:
        _log.warning(
            "the checkpoint has the random states of %d processes, and this run has %d: they are not restored, and "
            "what is drawn from here on differs",
            len(states), trainer.world_size,
        )  # fmt: skip


def keep_loaders_apart(trainer: L.Trainer) -> None:
    """Give each loader a generator of its own for its workers' seeds.

    Otherwise each pass over one starts with a draw from torch's generator, and a run that continues in the middle of an
    epoch, or where a validation was due, starts more of them than a run that goes through.
    """
    for loop in (trainer.fit_loop, trainer.fit_loop.epoch_loop.val_loop):
        for loader in loop._combined_loader.flattened if loop._combined_loader is not None else []:
            if isinstance(loader, DataLoader) and loader.generator is None:
                loader.generator = torch.Generator().manual_seed(torch.initial_seed() % 2**63 + trainer.global_rank)
