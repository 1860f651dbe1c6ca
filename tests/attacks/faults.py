"""Trainings in two processes that things are done to: signals, kills, full disks, losses that are no numbers."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn
from torch.distributed.fsdp import fully_shard

from cropl.callbacks.ema import EMA
from cropl.datamodules.shards import ShardsDataModule
from cropl.modules.localizer import LocalizerModule
from cropl.modules.token_loss import TokenLossModule
from cropl.parallel import FSDP2
from tests.attacks.kills import _free_port
from tests.callbacks.runs import ACCUMULATE, BATCH, SAMPLES, Draws, Numbers, as_rank, fit

PAUSE = 0.05


class Sharded(Draws):
    """Under FSDP2 its weights are shared out."""

    def __init__(self, *args: Any, **kwargs: Any):
        super().__init__(*args, **kwargs)
        self.layer = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 1))
        for parameter in self.layer.parameters():
            nn.init.constant_(parameter, 0.2)

    def configure_model(self) -> None:
        if self.device_mesh is not None and not hasattr(self.layer, "unshard"):
            fully_shard(self.layer, mesh=self.device_mesh["data_parallel"])


class Slow(Sharded):
    """There is time to send it signals; it says how far it is."""

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        if self.log_file is not None:
            self.log_file.with_suffix(f".{self.global_rank}").write_text(f"{self.trainer.fit_loop.total_batch_idx}")
        time.sleep(PAUSE)


class Keyed(Numbers):
    """Batches whose samples have keys."""

    def train_dataloader(self) -> Any:
        loader = super().train_dataloader()
        loader.collate_fn = lambda numbers: {"x": numbers, "questions": [[{"key": f"s{n}"}] for n in numbers]}
        return loader


class Bad(TokenLossModule):
    """Its loss, or the gradient of it, is no number for one sample."""

    def __init__(self, sample: int, place: str, shard: bool = False, **options: Any):
        super().__init__(lr=0.01, **options)
        self.sample, self.place, self.shard, self.updates = sample, place, shard, 0
        self.line = nn.Linear(2, 2)

    def configure_model(self) -> None:
        if self.shard and not hasattr(self.line, "unshard"):
            fully_shard(self.line, mesh=self.device_mesh["data_parallel"])

    def training_step(self, batch: Any, index: int) -> torch.Tensor:
        x_T = torch.tensor(batch["x"], dtype=torch.float32)
        loss_T = self.line(torch.stack([x_T, x_T], 1) / SAMPLES).square().sum(1)
        bad_T = x_T == self.sample
        if self.place == "loss":
            loss_T = loss_T * torch.ones_like(loss_T).masked_fill(bad_T, float("nan"))
        elif self.place == "gradient":  # the root of zero is zero, and its slope infinite
            loss_T = loss_T + (0 * loss_T[bad_T]).sqrt().sum()
        elif self.place == "spike" and self.current_epoch:
            loss_T = loss_T * torch.ones_like(loss_T).masked_fill(bad_T, 1e4)
        sample_T = torch.arange(len(x_T))
        return self.summed(loss_T, sample_T, torch.zeros_like(sample_T) - 1, [])[0]

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        before = [p.detach().clone() for p in self.parameters()]
        super().optimizer_step(*args, **kwargs)
        self.updates += any(not torch.equal(a, b) for a, b in zip(before, self.parameters()))


def _strategy(name: str, world: int) -> Any:
    return FSDP2(timeout_seconds=60) if name == "fsdp2" else ("ddp" if world > 1 else "auto")


def bad(out: Path, world: int, strategy: str, sample: int, place: str) -> None:
    """A loss or gradient that is no number, on the process that gets the sample."""
    module = Bad(sample, place, strategy == "fsdp2")
    try:
        fit(out, module=module, data=Keyed(), world=world, strategy=_strategy(strategy, world), val_check_interval=None)
    finally:
        (out / f"updates-{module.global_rank}").write_text(str(module.updates))


def slow(out: Path, world: int, strategy: str, ckpt: str | None = None) -> None:
    """Waits for signals."""
    fit(
        out, ckpt, Slow(out / "log.jsonl"), world=world, strategy=_strategy(strategy, world), ckpt_every_n_train_steps=5
    )


def full(out: Path, world: int, strategy: str, rank: int) -> None:
    """The disk of one process is full from its 8th file on."""
    if int(os.environ["LOCAL_RANK"]) == rank:
        real, count = os.fsync, 0

        def fsync(descriptor: int) -> None:
            nonlocal count
            count += 1
            if count > 8:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            real(descriptor)

        os.fsync = fsync
    fit(out, module=Sharded(), world=world, strategy=_strategy(strategy, world))


def dying(out: Path, world: int, strategy: str, ckpt: str | None, kill_at: int | None) -> None:
    """Is killed ahead of a file operation of its third checkpoint."""
    module = Sharded(out / "log.jsonl")
    if kill_at is not None:
        die_at(kill_at, lambda: module.global_step == 3)
    fit(out, ckpt, module, world=world, strategy=_strategy(strategy, world), ckpt_keep=2 if ckpt else 100)


class Losses(L.Callback):
    """Writes down the losses of each step's batches."""

    def __init__(self, file: Path):
        self.file, self.window = file, []

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.window.append([[row["key"] for (row,) in batch["questions"]], float(outputs["loss"])])
        if not trainer.fit_loop._should_accumulate():
            with open(self.file, "a") as file:
                file.write(json.dumps([trainer.global_step - 1, trainer.global_rank, self.window]) + "\n")
            self.window = []


def dying_localizer(
    out: Path, world: int, strategy: str, ckpt: str | None, kill_at: int | None, base: str, shards: Path
) -> None:
    """As `dying`, but a real module on real data, with random phases of its tokens, and with averages."""
    module = LocalizerModule(base, lr=1e-3, stride=2)
    data = ShardsDataModule(str(shards / "train"), global_batch=8, micro_batch=2, num_workers=0)
    if kill_at is not None:
        die_at(kill_at, lambda: module.global_step == 3)
    callbacks = [EMA(0.9), Losses(out / "log.jsonl")]
    fit(
        out, ckpt, module, data, world=world, strategy=_strategy(strategy, world), ckpt_keep=2 if ckpt else 100,
        accumulate_grad_batches=1, max_steps=5, val_check_interval=None, callbacks=callbacks,
    )  # fmt: skip


def die_at(number: int, when: Callable[[], bool]) -> None:
    """Kill this process ahead of its file operation `number`, counted from a moment on."""
    count = 0

    def guarded(function: Any) -> Any:
        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal count
            count += when()
            if count == number:
                os.kill(os.getpid(), signal.SIGKILL)
            return function(*args, **kwargs)

        return call

    for name in ("write", "fsync", "replace", "mkdir", "rmdir", "unlink", "open", "rename"):
        setattr(os, name, guarded(getattr(os, name)))


def _rank(function: Any, out: Path, rank: int, world: int, port: int, args: tuple[Any, ...]) -> None:
    as_rank(rank, world, port)
    try:
        function(out, world, *args)
    except BaseException as error:
        (out / f"error-{rank}.txt").write_text(f"{type(error).__name__}: {error}")
        raise


@contextlib.contextmanager
def running(function: Any, out: Path, world: int, *args: Any) -> Iterator[list[Any]]:
    """The processes of a training; all of them are gone in the end."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    port = _free_port()
    out.mkdir(exist_ok=True)
    ranks = [context.Process(target=_rank, args=(function, out, rank, world, port, args)) for rank in range(world)]
    for process in ranks:
        process.start()
    try:
        yield ranks
    finally:
        for process in ranks:
            process.kill()
            process.join()


def codes(ranks: list[Any], seconds: float = 60) -> list[int]:
    """Exit codes; nobody hangs."""
    end = time.monotonic() + seconds
    for process in ranks:
        process.join(max(0, end - time.monotonic()))
        assert process.exitcode is not None, "a process hangs"
    return [process.exitcode for process in ranks]


def run(function: Any, out: Path, world: int, *args: Any, seconds: float = 120) -> list[int]:
    """A training to its end."""
    with running(function, out, world, *args) as ranks:
        return codes(ranks, seconds)


def wait_for_batch(out: Path, rank: int, batch: int, seconds: float = 120) -> None:
    """Until a process of `slow` has begun a batch."""
    end = time.monotonic() + seconds
    path = out / f"log.{rank}"
    while not (path.exists() and int(path.read_text() or -1) >= batch):
        assert time.monotonic() < end, "the training does not get there"
        time.sleep(0.005)


def log(out: Path) -> dict[tuple[int, int], Any]:
    """What was written for each (step, rank), which all runs agree upon."""
    found: dict[tuple[int, int], Any] = {}
    for line in (out / "log.jsonl").read_text().splitlines():
        step, rank, batches = json.loads(line)
        assert found.setdefault((step, rank), batches) == batches, f"step {step} of rank {rank} differs between runs"
    return found


def copy_of(folder: Path, name: str) -> Path:
    """A folder to do other things to."""
    return Path(shutil.copytree(folder, folder.with_name(name)))


__all__ = ["ACCUMULATE", "BATCH", "bad", "codes", "copy_of", "dying", "dying_localizer", "full", "log", "run"]
__all__ += ["running", "slow"]
