"""A training that is killed again and again, with SIGKILL, and what it has trained on in the end.

    python -m tests.attacks.kills 200          (kills; with 1 rank, with 2 ranks, and with both by turns)

Every optimizer step writes down its samples and its loss, which draws of all generators enter. Whatever is written by
any of the runs must be what one uninterrupted run writes, exactly.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import random
import socket
import sys
import tempfile
import time
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.plugins.environments import LightningEnvironment
from torch.nn.functional import mse_loss

from cropl.callbacks import complete
from cropl.callbacks.checkpoint import Checkpoint
from cropl.data.sample import Sample
from cropl.data.writer import ShardWriter
from cropl.datamodules.shards import ShardsDataModule
from tests.data.conftest import make_sample

SAMPLES, GLOBAL_BATCH, MICRO_BATCH, EPOCHS = 45, 8, 2, 6
STEPS = EPOCHS * -(-SAMPLES // GLOBAL_BATCH)
PAUSE = 0.01


class Scribe(L.LightningModule):
    """A small model whose every step is written down. Asks for the number of steps, as every cosine schedule does."""

    def __init__(self, log: Path, draws: bool) -> None:
        super().__init__()
        self.layer = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        self.log_file, self.draws = log, draws
        self.window: list[tuple[str, float]] = []

    def training_step(self, batch: list[Sample], index: int) -> torch.Tensor:
        seeds = [zlib.crc32(sample.key.encode()) for sample in batch]
        x = torch.stack([torch.randn(4, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
        if self.draws:
            x = x + (random.random() + np.random.rand() + torch.rand(len(x), 4)) / 10
        loss = mse_loss(self.layer(x)[:, 0], x.prod(1))
        self.window += [(sample.key, loss.item()) for sample in batch]
        time.sleep(PAUSE)
        return loss

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        line = json.dumps([self.global_step, self.trainer.global_rank, self.trainer.world_size, self.window]) + "\n"
        with open(self.log_file, "a") as file:  # one write of one line: it is there whole or not at all
            file.write(line)
        self.window = []

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=0.05)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


@dataclass(frozen=True)
class Job:
    """One training: its shards, where it writes, its worker processes, and whether its steps draw random numbers."""

    shards: Path
    out: Path
    workers: int = 0
    draws: bool = True

    @property
    def log(self) -> Path:
        """One line for each step and rank that was taken, by any run."""
        return self.out / "log.jsonl"

    def saved(self) -> list[Path]:
        """The checkpoints, the last saved first."""
        return complete.complete(self.out / "checkpoints")


def train(job: Job, rank: int, world: int, port: int) -> None:
    """One rank of a run, in a process of its own."""
    os.environ.update(
        MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), LOCAL_RANK=str(rank), NODE_RANK="0", WORLD_SIZE=str(world),
    )  # fmt: skip
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    L.seed_everything(rank, verbose=False)  # each draws its own; weights are the first one's
    data = ShardsDataModule(
        str(job.shards), global_batch=GLOBAL_BATCH, micro_batch=MICRO_BATCH, num_workers=job.workers,
        start_method="fork" if world == 1 else "forkserver",  # a fork beside gloo's threads may hang
    )  # fmt: skip
    saver = Checkpoint(str(job.out / "checkpoints"), every_n_train_steps=2, keep=3)
    trainer = L.Trainer(
        accelerator="cpu", devices=world, strategy="ddp" if world > 1 else "auto", max_epochs=EPOCHS, logger=False,
        plugins=[LightningEnvironment()], callbacks=[saver], enable_progress_bar=False,
        enable_model_summary=False, default_root_dir=job.out,
    )  # fmt: skip
    trainer.fit(Scribe(job.log, job.draws), data, ckpt_path="last")


def killed(job: Job, worlds: list[int], kills: int, seed: int = 0) -> tuple[int, int]:
    """Run a job to its end, killed `kills` times on the way; the worlds take turns.

    Returns:
        The number of kills, and of those that had a checkpoint to continue from.
    """
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__])
    chance = random.Random(seed)
    done = continued = 0
    most = max(3, STEPS // (kills + 1))  # steps of a run, so that there are checkpoints and the job is not over
    for run in range(10 * kills + 10):
        world, port = worlds[run % len(worlds)], _free_port()
        ranks = [context.Process(target=train, args=(job, rank, world, port)) for rank in range(world)]
        for process in ranks:
            process.start()
        if done < kills:
            _wait_for_lines(job, ranks, chance.randint(1, most) * world)
            time.sleep(chance.uniform(0, 6 * PAUSE))
            first = chance.randrange(world)
            for process in ranks[first:] + ranks[:first]:
                process.kill()
            done += 1
        for process in ranks:
            process.join(120)
            if process.exitcode is None:
                process.kill()
                raise AssertionError("a rank hangs")
        if all(process.exitcode == 0 for process in ranks):
            return done, continued
        assert done <= kills and any(process.exitcode == -9 for process in ranks), "a rank failed by itself"
        continued += bool(job.saved())
        assert len(job.saved()) <= 3 + 1 and not any(complete.damage(path) for path in job.saved())
    raise AssertionError("the job does not come to its end")


def steps(job: Job) -> dict[tuple[int, int, int], list[tuple[str, float]]]:
    """What was written for each (step, rank, world).

    Raises:
        AssertionError: two runs wrote different things for the same step.
    """
    written: dict[tuple[int, int, int], Any] = {}
    for line in job.log.read_text().splitlines():
        step, rank, world, window = json.loads(line)
        assert written.setdefault((step, rank, world), window) == window, f"step {step} differs between runs"
    return written


def samples_of_steps(job: Job) -> list[list[str]]:
    """The samples of each optimizer step over all ranks, sorted, whatever world it was taken in."""
    found: dict[int, list[str]] = {}
    for (step, _, world), _ in sorted(steps(job).items()):
        parts = [window for (s, _, w), window in steps(job).items() if (s, w) == (step, world)]
        if len(parts) == world:  # a killed run may have written for one rank only
            keys = sorted(key for window in parts for key, _ in window)
            assert found.setdefault(step, keys) == keys, f"step {step} has other samples in a world of {world}"
    return [found[step] for step in sorted(found)]


def make_shards(folder: Path) -> Path:
    """The data of all jobs."""
    with ShardWriter(folder, samples_per_shard=7) as writer:
        for number in range(SAMPLES):
            writer.write(make_sample(number))
    return folder


def _wait_for_lines(job: Job, ranks: list[Any], more: int) -> None:
    def lines() -> int:
        return job.log.read_text().count("\n") if job.log.exists() else 0

    start = lines()
    while lines() < start + more and all(process.is_alive() for process in ranks):
        time.sleep(0.002)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def check(folder: Path, worlds: list[int], kills: int, workers: int = 0, seed: int = 0) -> str:
    """Kill a job and compare it with one that was left in peace; a line of what happened.

    Raises:
        AssertionError: a sample was lost, repeated or moved, or a loss changed.
    """
    shards = make_shards(folder / "shards")
    draws = len(worlds) == 1  # random states are of a number of processes, and go on with that alone
    peace, war = (Job(shards, folder / name, workers, draws) for name in ("peace", "war"))
    for job in (peace, war):
        job.out.mkdir()
    killed(peace, worlds[:1], 0)
    done, continued = killed(war, worlds, kills, seed)
    assert done == kills, "the job was over before all kills were done"
    assert continued, "no kill left a checkpoint: nothing was continued"
    expected = samples_of_steps(peace)
    assert len(expected) == STEPS and samples_of_steps(war) == expected
    per_epoch = [key for batch in expected[: STEPS // EPOCHS] for key in batch]
    assert set(per_epoch) == {f"s{i:04d}" for i in range(SAMPLES)}
    if len(worlds) == 1:
        assert steps(war) == steps(peace)  # losses too, bit for bit
        assert [path.name for path in war.saved()] == [f"step-{step:06d}" for step in (STEPS, STEPS - 2, STEPS - 4)]
        ends = [torch.load(job.saved()[0] / complete.WHOLE, weights_only=True)["state_dict"] for job in (peace, war)]
        assert all(torch.equal(ends[0][name], ends[1][name]) for name in ends[0])
    lines = len(war.log.read_text().splitlines())
    return f"worlds {worlds}: {kills} kills, {continued} of them continued, {lines} lines for {STEPS} steps"


def main() -> None:
    """Run all settings with the number of kills that is asked for."""
    kills = int(sys.argv[1]) if len(sys.argv) > 1 else 200
    for worlds, workers in (([1], 2), ([2], 0), ([2], 1), ([2, 1], 0)):
        done = 0
        while done < kills:  # a job has room for a dozen kills or two
            part = min(12, kills - done)
            with tempfile.TemporaryDirectory() as folder:
                print(check(Path(folder), worlds, part, workers, seed=done), flush=True)
            done += part


if __name__ == "__main__":
    from tests.attacks import kills  # by its name, so that the forkserver imports it once for all runs

    kills.main()
