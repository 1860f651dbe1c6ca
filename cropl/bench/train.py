"""The speed and memory of a training step: as it is here, with each of its savings left out, and without all of them.

A step is forward, backward and AdamW on the same weights and samples; the paths take turns, so that other load on the
machine meets all of them. On a CPU it has one thread, and the time that this thread computes counts, which other load
hardly changes. The learning rate is 0: every path computes the same loss in every step, and it is checked.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from cropl.bench.device import PeakMemory, peak_flops
from cropl.bench.train_inputs import TASKS, Task
from cropl.data.packing import pack, rows_of
from cropl.models.packed import decoded, packed_losses

# B rows, S length, D width, T supervised tokens, W vocabulary


@dataclass(frozen=True)
class Path:
    """How a step is computed.

    Attributes:
        packed: samples share rows, padded to the longest sample; otherwise each has a row of its own.
        chunked: losses of supervised tokens without their logits; otherwise the logits of all positions, in float32.
        frozen: the vision tower keeps no graph; otherwise gradients go all the way to its weights, and are thrown away.
    """

    packed: bool = True
    chunked: bool = True
    frozen: bool = True


PATHS = {
    "cropl": Path(),
    "a row per sample": Path(packed=False),
    "all logits": Path(chunked=False),
    "tower in the graph": Path(frozen=False),
    "naive": Path(packed=False, chunked=False, frozen=False),
}
"""The last one is all three of what stands above it."""


class Step:
    """Training steps of one task.

    Args:
        task: model and batch.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.device = task.vlm.device
        task.vlm.tower.requires_grad_(False)
        task.vlm.projector.requires_grad_(True)
        options: dict[str, Any] = {"fused": True} if self.device.type == "cuda" else {}
        self.optimizer = torch.optim.AdamW(task.trained(), lr=0.0, **options)
        lengths = [len(document) for document in task.documents]
        order = {True: rows_of(lengths), False: [[i] for i in range(len(lengths))]}
        self.order = order
        rows = {packed: [[task.documents[i] for i in row] for row in one] for packed, one in order.items()}
        self.rows = {packed: pack(one, pad_id=0).to(self.device) for packed, one in rows.items()}

    def padding(self, path: Path) -> float:
        """Share of the positions that are padding."""
        return float(self.rows[path.packed].padding)

    def __call__(self, path: Path) -> float:
        """One step; returns the mean loss of the supervised tokens."""
        with self._graph(path):
            visual = self.task.visual_tokens()
            shown = [visual[i] for row in self.order[path.packed] for i in row]
            loss_T = self._losses(path, shown)
            loss = loss_T.sum() / self.task.supervised
            loss.backward()
        self.optimizer.step()
        self.task.vlm.model.zero_grad(set_to_none=True)
        self.optimizer.zero_grad(set_to_none=True)
        return float(loss.detach())

    def _losses(self, path: Path, features: Sequence[Tensor]) -> Tensor:
        vlm, packed = self.task.vlm, self.rows[path.packed]
        if path.chunked:
            return packed_losses(vlm, packed, features)[0]
        hidden_BSD = decoded(vlm, packed, features).last_hidden_state
        logits_BSW = vlm.model.get_output_embeddings()(hidden_BSD).float()
        return F.cross_entropy(logits_BSW.flatten(0, 1), packed.labels_BS.flatten(), reduction="none")

    @contextmanager
    def _graph(self, path: Path) -> Iterator[None]:
        """Weights of the tower that need gradients, if the path asks for them."""
        frozen = [parameter for parameter in self.task.vlm.tower.parameters() if not parameter.requires_grad]
        for parameter in frozen:
            parameter.requires_grad_(not path.frozen)
        yield
        for parameter in frozen:
            parameter.requires_grad_(False)


def measure(
    name: str,
    size: str,
    batch: int,
    rounds: int,
    device: torch.device,
    dtype: torch.dtype,
    vocabulary: int | None = None,
    peak_tflops: float | None = None,
    advance: Callable[[str], None] = lambda what: None,
) -> list[dict[str, Any]]:
    """One row for each of `PATHS`.

    Args:
        name: of the task, one of `TASKS`.
        size: of its model, one of `SIZES`.
        batch: samples of a step.
        rounds: times that each path is measured; a first time does not count.
        device, dtype: where and in what the model computes; so are its weights and AdamW's moments.
        vocabulary: rows of the embedding table, where not the model's own.
        peak_tflops: of the device, where it is not known.
        advance: called after each step, `(rounds + 1) * len(PATHS)` times, with the path's name.

    Raises:
        ValueError: the paths do not compute the same loss, so that their speeds could not be compared.
    """
    task = TASKS[name](size, batch, device, dtype, vocabulary)
    step = Step(task)
    peak = peak_flops(device, dtype) if peak_tflops is None else 1e12 * peak_tflops
    losses: dict[str, float] = {}
    memory: dict[str, int] = {}
    seconds: dict[str, list[float]] = {path: [] for path in PATHS}
    with _one_thread(device):
        step(PATHS["cropl"])  # AdamW's moments are there from now on
        for path in PATHS:
            with PeakMemory(device) as needed:
                losses[path] = step(PATHS[path])
            memory[path] = needed.bytes
            advance(path)
        _check_same(losses, dtype)
        for _ in range(rounds):
            for path in PATHS:
                seconds[path].append(_timed(step, PATHS[path], device))
                advance(path)
    held = sum(parameter.numel() * parameter.element_size() for parameter in _weights(task))
    held += 2 * sum(parameter.numel() * parameter.element_size() for parameter in task.trained())
    shared = {
        "task": name,
        "size": size,
        "batch": batch,
        "tokens": task.tokens,
        "supervised": task.supervised,
        "flops": task.flops,
        "parameters": sum(parameter.numel() for parameter in _weights(task)),
        "held_bytes": held,
        "peak_flops": peak,
    }
    return [
        {
            **shared,
            "path": path,
            "padding": step.padding(PATHS[path]),
            "loss": losses[path],
            "step_bytes": memory[path],
            **speed(seconds[path], median(seconds["naive"]), task.tokens, task.flops, peak),
        }
        for path in PATHS
    ]


def speed(seconds: list[float], naive: float, tokens: int, flops: float, peak: float | None) -> dict[str, Any]:
    """Figures of one path: median seconds, the least and the most, and what follows from the median."""
    middle = median(seconds)
    return {
        "seconds": middle,
        "spread": [min(seconds), max(seconds)],
        "rounds_seconds": seconds,
        "tokens_per_s": tokens / middle,
        "speedup": naive / middle,
        "mfu": None if peak is None else flops / middle / peak,
    }


def _timed(step: Step, path: Path, device: torch.device) -> float:
    """Seconds of a step: by the clock on a GPU, CPU time of one thread elsewhere."""
    if device.type != "cuda":
        begun = time.process_time()
        step(path)
        return time.process_time() - begun
    torch.cuda.synchronize(device)
    begun = time.perf_counter()
    step(path)
    torch.cuda.synchronize(device)
    return time.perf_counter() - begun


@contextmanager
def _one_thread(device: torch.device) -> Iterator[None]:
    """On a CPU, where the time of waiting threads would count as well."""
    threads = torch.get_num_threads()
    if device.type == "cpu":
        torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _weights(task: Task) -> list[torch.nn.Parameter]:
    return [*task.vlm.model.parameters(), *(task.compressor.parameters() if task.compressor is not None else ())]


def _check_same(losses: dict[str, float], dtype: torch.dtype) -> None:
    tolerance = 1e-4 if dtype == torch.float32 else 2e-2
    wrong = [name for name, loss in losses.items() if not abs(loss / losses["naive"] - 1) <= tolerance]
    if wrong:
        raise ValueError(f"{', '.join(wrong)}: another loss than the naive path's {losses['naive']}: {losses}")
