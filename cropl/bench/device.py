"""What a device can do at most, and how much memory a piece of work takes of it."""

from __future__ import annotations

import re
import weakref
from types import TracebackType
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

BF16_TFLOPS = {
    "b200": 2250, "h200": 989, "h100 pcie": 756, "h100 nvl": 835, "h100": 989, "gh200": 989, "a100": 312,
    "l40s": 362, "l40": 181, "l4": 121, "a40": 150, "a10g": 70, "a10": 125, "rtx 6000 ada": 364, "a6000": 155,
    "rtx 4090": 165, "rtx 3090": 71,
}  # fmt: skip
"""Dense bfloat16 tensor-core peaks of the makers' data sheets, by words of a card's name; the first that fits counts.

Lightning's table has the twice as high numbers of sparse matrices for some of them.
"""


def peak_flops(device: torch.device, dtype: torch.dtype) -> float | None:
    """FLOP/s that a device reaches at most on dense matrices of this type; None where it is not known."""
    if device.type != "cuda" or dtype not in (torch.bfloat16, torch.float16):
        return None
    name = torch.cuda.get_device_name(device).lower()
    return next((1e12 * peak for words, peak in BF16_TFLOPS.items() if re.search(rf"\b{words}\b", name)), None)


class PeakMemory:
    """A context that measures the peak of what is allocated within, in bytes, beyond what was there before.

    On a GPU that is the allocator's. On a CPU it is the sum of the storages that torch's operations return and that are
    still alive: what kernels need for themselves is not seen. It slows a CPU's work down, so time that apart.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self.bytes = 0
        self._live = _Live()

    def __enter__(self) -> PeakMemory:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            torch.cuda.reset_peak_memory_stats(self.device)
            self._before = torch.cuda.memory_allocated(self.device)
        else:
            self._live.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)
            self.bytes = torch.cuda.max_memory_allocated(self.device) - self._before
        else:
            self._live.__exit__(kind, error, trace)
            self.bytes = self._live.peak


class _Live(TorchDispatchMode):
    """Follows every storage that an operation makes, until it is freed."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known: dict[int, Any] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {one.untyped_storage().data_ptr() for one in tree_leaves((args, kwargs)) if isinstance(one, Tensor)}
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, Tensor):
                self._note(one.untyped_storage(), given)
        return made

    def _note(self, storage: torch.UntypedStorage, given: set[int]) -> None:
        place, size = storage.data_ptr(), storage.nbytes()
        if not size or place in self._known or place in given:  # a view, or what was changed in place
            return
        self.now += size
        self.peak = max(self.peak, self.now)

        def freed(_: Any) -> None:
            del self._known[place]
            self.now -= size

        self._known[place] = weakref.ref(storage, freed)
