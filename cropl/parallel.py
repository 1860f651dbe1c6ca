"""Data-parallel training with sharded weights, gradients and optimizer states: ``--trainer.strategy fsdp2``.

Lightning's ``ModelParallelStrategy`` does the work; its defaults are tensor parallel, in which all processes get the
same data. Here the processes share nothing but weights. It runs on GPUs with NCCL and on CPUs with gloo alike.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any, Literal, get_args

import torch
import torch.distributed as dist
from lightning.pytorch.strategies import ModelParallelStrategy, StrategyRegistry
from torch import nn
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

ComputeDtype = Literal["float32", "bfloat16"]

METADATA = "meta.pt"
"""In the folder of a sharded checkpoint: what is neither weight nor optimizer state. Lightning writes it last."""


class FSDP2(ModelParallelStrategy):
    """FSDP2 over all processes.

    Args:
        compute_dtype: of forward and backward. Weights, their updates and optimizer states are always float32, and so
            are gradients when they are added up over processes.
        timeout_seconds: how long a process waits for the others before it gives up; loading and saving count too.
        save_distributed_checkpoint: each process writes its own part, into a folder (`cropl consolidate` makes one
            file of it); otherwise the first process collects everything and writes one file.

    Raises:
        ValueError: the compute dtype is unknown, or ``trainer.precision`` is set.
    """

    def __init__(
        self,
        compute_dtype: ComputeDtype = "float32",
        timeout_seconds: int = 1800,
        save_distributed_checkpoint: bool = True,
    ) -> None:
        if compute_dtype not in get_args(ComputeDtype):
            raise ValueError(f"compute_dtype {compute_dtype!r}: must be one of {', '.join(get_args(ComputeDtype))}")
        super().__init__(
            save_distributed_checkpoint=save_distributed_checkpoint, timeout=timedelta(seconds=timeout_seconds)
        )
        self.compute_dtype: torch.dtype = getattr(torch, compute_dtype)

    def setup_environment(self) -> None:
        if self.precision_plugin.precision != "32-true":
            raise ValueError(
                f"trainer.precision {self.precision_plugin.precision!r} does not go with fsdp2: leave it out, and set "
                "trainer.strategy.compute_dtype to bfloat16 for bfloat16 computation over float32 weights"
            )
        self._data_parallel_size, self._tensor_parallel_size = self.num_nodes * self.num_processes, 1
        super().setup_environment()


StrategyRegistry.register("fsdp2", FSDP2, description="weights, gradients and optimizer states sharded (FSDP2)")


def shard(
    root: nn.Module,
    units: Iterable[nn.Module],
    mesh: DeviceMesh,
    device: torch.device,
    compute_dtype: torch.dtype = torch.float32,
    methods: Iterable[str] = (),
) -> None:
    """Shard ``units``, and what remains of ``root`` as one more unit, which is gathered whenever the root computes.

    Embeddings, the head that may be tied to them, norms, projector and tower are all in the root's unit: a step may use
    them one by one, in any order. A frozen tower is there as well, though its weights never change and each process
    could keep them whole. So its weights are kept once, at the precision they were loaded in, and are gathered with
    the rest in one collective that does not depend on what a process computes: one that runs the tower less often than
    others waits for nobody. It costs a transfer of the tower's size a step, one part in fifty of a 7B model's.

    Every process has loaded the whole model in its own memory before; the first one's trainable weights count, become
    float32 and move to ``device`` unit by unit.

    Args:
        root: the module that is trained.
        units: parts of it that are gathered, computed and freed one after the other.
        mesh: the processes.
        device: of this process.
        compute_dtype: of forward and backward.
        methods: names of the root's methods that compute, beside ``forward``.
    """
    policy = MixedPrecisionPolicy(compute_dtype, torch.float32, cast_forward_inputs=False)
    for unit in (*units, root):
        for parameter in unit.parameters():
            if parameter.requires_grad and not isinstance(parameter, DTensor):
                parameter.data = parameter.data.to(device, torch.float32)
                dist.broadcast(parameter.data, 0)
        fully_shard(unit, mesh=mesh, mp_policy=policy)
    for name in methods:
        register_fsdp_forward_method(root, name)


def is_sharded(path: str | Path) -> bool:
    """Whether a path is the folder of a sharded checkpoint that was written to its end."""
    return (Path(path) / METADATA).is_file()


def stored_weights(path: str | Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights in a checkpoint, a file or a sharded folder, without reading them."""
    if not is_sharded(path):
        stored = torch.load(path, mmap=True, map_location="meta", weights_only=True)["state_dict"]
        return {name: tuple(value.shape) for name, value in stored.items()}
    prefix = "state_dict."
    known: Mapping[str, Any] = FileSystemReader(path).read_metadata().state_dict_metadata
    sizes = {name: getattr(value, "size", ()) for name, value in known.items() if name.startswith(prefix)}
    return {name.removeprefix(prefix): tuple(size) for name, size in sizes.items()}


def consolidated(folder: Path) -> Path:
    """Where :func:`consolidate` writes: ``NAME.full.ckpt`` beside ``NAME.ckpt``."""
    return folder.with_name(f"{folder.stem}.full.ckpt")


def consolidate(folder: str | Path, file: str | Path | None = None) -> Path:
    """One checkpoint file of a sharded checkpoint's folder, for any strategy and any number of processes.

    torch unpickles the index of a sharded checkpoint: give only folders that you trust (the command looks before).

    Args:
        folder: the checkpoint.
        file: where to write; appears when it is complete. By default :func:`consolidated`.

    Raises:
        ValueError: there is no sharded checkpoint in this folder, or the writing of it was not finished.
    """
    folder = Path(folder)
    if not is_sharded(folder):
        raise ValueError(f"{folder} is not the folder of a complete sharded checkpoint: it has no {METADATA}")
    file = consolidated(folder) if file is None else Path(file)
    gathered, part = (file.with_name(f".{file.name}.{end}") for end in ("gathered", "part"))
    try:
        with data_only():
            dcp_to_torch_save(folder, gathered)
        weights: dict[str, Any] = torch.load(gathered, mmap=True, weights_only=True)
        checkpoint = torch.load(folder / METADATA, weights_only=True)
        checkpoint["state_dict"] = weights["state_dict"]
        count = sum(name.startswith("optimizer_") for name in weights)
        checkpoint["optimizer_states"] = [numbered(weights[f"optimizer_{i}"]) for i in range(count)]
        with open(part, "wb") as written:
            torch.save(checkpoint, written)
            written.flush()
            os.fsync(written.fileno())
        part.replace(file)
    finally:
        for left in (gathered, part):
            left.unlink(missing_ok=True)
    return file


@contextmanager
def data_only() -> Iterator[None]:
    """Let torch.load unpickle no code, even where a library asks it to: it does, for parts of sharded checkpoints."""
    name = "TORCH_FORCE_WEIGHTS_ONLY_LOAD"
    before = os.environ.get(name)
    os.environ[name] = "1"
    try:
        yield
    finally:
        os.environ.pop(name) if before is None else os.environ.update({name: before})


def numbered(state: Mapping[str, Any]) -> dict[str, Any]:
    """An optimizer's state by the numbers that ``torch.optim`` gives its parameters, from one by their names."""
    names = [name for group in state["param_groups"] for name in group["params"]]
    number = {name: i for i, name in enumerate(names)}
    return {
        "state": {number[name]: value for name, value in state["state"].items()},
        "param_groups": [{**group, "params": [number[n] for n in group["params"]]} for group in state["param_groups"]],
    }


def load_optimizers(module: nn.Module, optimizers: Iterable[torch.optim.Optimizer], states: Iterable[Any]) -> None:
    """Load the states of a sharded module's optimizers from a checkpoint file, however it was written.

    A file has numbers for parameters, those of the optimizer if one process wrote it. Lightning takes them for places
    among all parameters of the module, and so restores a state wrongly unless all train, in one group; what it has
    restored by then, perhaps in wrong shapes, is forgotten.
    """
    options = StateDictOptions(full_state_dict=True, broadcast_from_rank0=True)
    for optimizer, state in zip(optimizers, states):
        optimizer.state.clear()
        set_optimizer_state_dict(module, optimizer, named(state, optimizer, module), options=options)


def named(state: Mapping[str, Any], optimizer: torch.optim.Optimizer, module: nn.Module) -> dict[str, Any]:
    """An optimizer's state by the names of its parameters, from one by numbers."""
    known = {parameter: name for name, parameter in module.named_parameters()}
    names = [known[parameter] for group in optimizer.param_groups for parameter in group["params"]]
    numbers = [number for group in state["param_groups"] for number in group["params"]]
    name = dict(zip(numbers, names, strict=True))
    return {
        "state": {name[number]: value for number, value in state["state"].items()},
        "param_groups": [{**group, "params": [name[n] for n in group["params"]]} for group in state["param_groups"]],
    }
