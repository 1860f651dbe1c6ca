"""A batch on its way between processes: one block of shared memory, however many tensors it has.

Left to itself every tensor travels as a file of its own, opened over a connection of its own, and everything else
through a pipe.
"""

from __future__ import annotations

import io
import pickle
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

ALIGNMENT = 64
"""Of each tensor in its block, in bytes."""


@dataclass
class Parcel:
    """A packed object.

    Attributes:
        block: uint8, its tensors one after the other, and then the pickle of the rest.
        rest: where the latter begins.
    """

    block: Tensor
    rest: int


def pack(made: Any) -> Parcel:
    """Copy an object into shared memory. Its tensors on the CPU must not require gradients."""
    file = io.BytesIO()
    packer = _Packer(file)
    packer.dump(made)
    rest = torch.frombuffer(file.getbuffer(), dtype=torch.uint8)
    # What torch's default collate does; `share_memory_` would copy once more.
    block = torch.empty(0, dtype=torch.uint8).set_(torch.UntypedStorage._new_shared(packer.end + len(rest)))
    for start, tensor in packer.tensors:
        _view(block, start, tensor.dtype, tensor.shape).copy_(tensor)
    block[packer.end :] = rest
    return Parcel(block, packer.end)


def unpack(parcel: Parcel) -> Any:
    """The object; its tensors are views of the shared memory, which is freed with the last of them."""
    return _Unpacker(io.BytesIO(parcel.block[parcel.rest :].numpy().data), parcel.block).load()


class _Packer(pickle.Pickler):
    """Leaves out plain tensors and notes where in the block they will be."""

    def __init__(self, file: io.BytesIO) -> None:
        super().__init__(file, protocol=5)
        self.tensors: list[tuple[int, Tensor]] = []
        self.end = 0

    def persistent_id(self, obj: Any) -> tuple[int, torch.dtype, torch.Size] | None:
        if type(obj) is not Tensor or obj.device.type != "cpu" or obj.layout != torch.strided:
            return None
        start = self.end
        self.tensors.append((start, obj))
        self.end = -(-(start + obj.numel() * obj.element_size()) // ALIGNMENT) * ALIGNMENT
        return start, obj.dtype, obj.shape


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, block: Tensor) -> None:
        super().__init__(file)
        self.block = block

    def persistent_load(self, pid: tuple[int, torch.dtype, torch.Size]) -> Tensor:
        return _view(self.block, *pid)


def _view(block: Tensor, start: int, dtype: torch.dtype, shape: torch.Size) -> Tensor:
    return block[start : start + shape.numel() * dtype.itemsize].view(dtype).view(shape)
