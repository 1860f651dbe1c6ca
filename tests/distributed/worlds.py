"""Trainings of the real modules on one process, here, or on several with gloo, each rank a Python of its own.

Starting Python takes longer than a tiny training, so the ranks of a world do a list of jobs one after the other.
"""

from __future__ import annotations

import importlib
import os
import pickle
import socket
import subprocess
import sys
import time
import warnings
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch

from cropl.data.sample import Sample
from cropl.data.writer import ShardWriter
from cropl.datamodules.shards import ShardsDataModule
from cropl.grid import Region
from cropl.models.export import full_state
from cropl.parallel import FSDP2
from cropl.testbed.samples import samples

ROOT = Path(__file__).resolve().parent.parent.parent
GLOBAL_BATCH, MICRO_BATCH = 8, 2


def write_samples(root: Path) -> Path:
    """Folders ``train`` and ``val``: pictures and longer or shorter texts, so that some batches have texts alone."""
    words = ["red", "star", "one", "two", "three", "four", "five", "six", "stop"]
    for split, pictures, texts in (("train", 5, 19), ("val", 5, 0)):
        with ShardWriter(root / "shards" / split, samples_per_shard=8) as writer:
            for sample in samples("train", pictures, start=50 if split == "val" else 0):
                writer.write(sample)
            for i in range(texts):
                answer = " ".join(words[: 1 + i % 7])
                writer.write(
                    Sample(
                        key=f"text-{i}",
                        question="What word is on the sign?",
                        answers=[answer],
                        boxes=[],
                        width=0,
                        height=0,
                        region=Region.full(),
                        kind="",
                        source="texts",
                        split=split,
                        image=None,
                        followups=[("And how many ?", "two")] * (i % 3),
                    )  # fmt: skip
                )
    return root / "shards"


@dataclass(frozen=True)
class Job:
    """One training.

    Attributes:
        name: of its results.
        module: its class.
        checkpoint: the model.
        shards: folders ``train`` and ``val``.
        out: folder of the results.
        options: the module's further arguments.
        strategy: arguments of FSDP2; None for none.
        steps: optimizer steps; an epoch has 3.
        save: checkpoint, below ``out``, that is written after the second step.
        resume: checkpoint, below ``out``, to go on from.
        micro_batch: samples of a forward pass.
        fault: rank whose data fail in the second step.
    """

    name: str
    module: str
    checkpoint: str
    shards: Path
    out: Path
    options: dict[str, Any] = field(default_factory=dict)
    strategy: dict[str, Any] | None = None
    steps: int = 4
    save: str | None = None
    resume: str | None = None
    micro_batch: int = MICRO_BATCH
    fault: int | None = None

    def on(self, name: str, **changes: Any) -> Job:
        """This job under FSDP2, or changed in another way."""
        return replace(self, **{"name": name, "strategy": {"timeout_seconds": 60}, **changes})


class Record(L.Callback):
    """What a rank trains on, and what is logged; saves in passing."""

    def __init__(self, save: Path | None) -> None:
        self.save = save
        self.batches: list[list[tuple[str, bool]]] = []
        self.losses: dict[int, float] = {}
        self.scores: list[dict[str, float]] = []

    def on_train_start(self, trainer: Any, module: Any) -> None:
        self.step = trainer.global_step

    def on_train_batch_start(self, trainer: Any, module: Any, batch: Any, index: int) -> None:
        shown = [image is not None for image in batch["images"]]
        self.batches.append([(row["key"], has) for (row,), has in zip(batch["questions"], shown)])

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
        if trainer.global_step > self.step:
            self.step = trainer.global_step
            self.losses[self.step] = float(trainer.callback_metrics["train/loss"])
            if self.step == 2 and self.save is not None:
                trainer.save_checkpoint(self.save)

    def on_validation_end(self, trainer: Any, module: Any) -> None:
        found = trainer.callback_metrics.items()
        self.scores.append({name: float(value) for name, value in found if name.startswith("val/")})


class Faulty(ShardsDataModule):
    """Data that fail on one rank, as a broken disk would."""

    broken = -1

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        if self.micro_done == 3 and self.trainer.global_rank == self.broken:  # type: ignore[union-attr]
            raise OSError("the disk of this rank is broken")
        return batch


def module_of(job: Job) -> Any:
    """A job's module before its training."""
    L.seed_everything(0, verbose=False)
    file, _, name = job.module.rpartition(".")
    return getattr(importlib.import_module(file), name)(job.checkpoint, lr=1e-3, **job.options)


def train(job: Job, world: int = 1) -> dict[str, Any]:
    """Do a job as one rank of ``world``; what happened."""
    torch.set_num_threads(1)
    module = module_of(job)
    kind = ShardsDataModule if job.fault is None else Faulty
    data = kind(
        str(job.shards / "train"), str(job.shards / "val"), global_batch=GLOBAL_BATCH, micro_batch=job.micro_batch,
        eval_batch=2, num_workers=0,
    )  # fmt: skip
    if job.fault is not None:
        data.broken = job.fault  # type: ignore[attr-defined]
    record = Record(None if job.save is None else job.out / job.save)
    before = {name: p.detach().clone() for name, p in module.named_parameters() if not p.requires_grad}
    trainer = L.Trainer(
        accelerator="cpu", devices=world, strategy="auto" if job.strategy is None else FSDP2(**job.strategy),
        max_steps=job.steps, gradient_clip_val=0.5, callbacks=[record], logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, num_sanity_val_steps=0, log_every_n_steps=1,
        default_root_dir=job.out,
    )  # fmt: skip
    resume = None if job.resume is None else str(job.out / job.resume)
    trainer.fit(module, data, ckpt_path=resume, weights_only=True)
    whole = full_state(module)
    frozen = full(module, before) if job.strategy is not None else dict(module.named_parameters())
    return {
        "batches": record.batches, "losses": record.losses, "scores": record.scores, "weights": whole,
        "dtypes": {str(p.dtype) for p in module.parameters() if p.requires_grad},
        "unchanged": all(torch.equal(frozen[name], value) for name, value in before.items()),
    }  # fmt: skip


def full(module: Any, names: Any) -> dict[str, torch.Tensor]:
    """Whole weights of some names."""
    known = dict(module.named_parameters())
    return {name: getattr(known[name], "full_tensor", lambda name=name: known[name])() for name in names}


def start(jobs: list[Job], world: int = 2) -> list[subprocess.Popen[str]]:
    """The ranks of a world that does ``jobs``."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    plan = jobs[0].out / f"{jobs[0].name}.jobs"
    plan.write_bytes(pickle.dumps(jobs))
    common = {
        **os.environ, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "NODE_RANK": "0",
        "WORLD_SIZE": str(world), "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1",
    }  # fmt: skip
    command = [sys.executable, "-m", "tests.distributed.worlds", str(plan), str(world)]
    return [
        subprocess.Popen(
            command, cwd=ROOT, env={**common, "LOCAL_RANK": str(rank)}, stderr=subprocess.PIPE, text=True
        )
        for rank in range(world)
    ]  # fmt: skip


def finish(ranks: list[subprocess.Popen[str]], seconds: float) -> list[tuple[int, str]]:
    """Exit code and errors of each rank. AssertionError if one does not end in time."""
    end = time.monotonic() + seconds
    told = []
    try:
        for rank in ranks:
            _, errors = rank.communicate(timeout=max(1.0, end - time.monotonic()))
            told.append((rank.returncode, errors))
    except subprocess.TimeoutExpired:
        raise AssertionError(f"a rank still runs after {seconds} s") from None
    finally:
        for rank in ranks:
            rank.kill()
    return told


def done(jobs: list[Job], world: int = 2, seconds: float = 500) -> dict[str, list[dict[str, Any]]]:
    """Results of jobs by name and rank."""
    for code, errors in finish(start(jobs, world), seconds):
        assert code == 0, errors[-4000:]
    return {job.name: results(job, world) for job in jobs}


def results(job: Job, world: int = 2) -> list[dict[str, Any]]:
    """What each rank has left of a job that is done."""
    return [torch.load(job.out / f"{job.name}.{rank}.pt", weights_only=False) for rank in range(world)]


def main() -> None:
    """One rank."""
    warnings.filterwarnings("ignore")
    world, rank = int(sys.argv[2]), os.environ["LOCAL_RANK"]
    for job in pickle.loads(Path(sys.argv[1]).read_bytes()):
        torch.save(train(job, world), job.out / f"{job.name}.{rank}.pt")


if __name__ == "__main__":
    from tests.distributed import worlds  # by its name, as the jobs know it

    worlds.main()
