"""A soak: one process trains and answers for a long time, and what it holds is written down.

    python -m tests.soak.run 20 docs/results/soak.json          (minutes, and where the samples go)
    python -m tests.soak.report docs/results/soak.json          (the page: docs/results/soak.md, and its plot)

By turns: an epoch of training the tiny localizer on shards, with two worker processes that are new in every epoch, and
now and then a checkpoint; then questions to an endless pipeline, which localizes ahead in a process of its own and is
opened anew every ten epochs.
"""

from __future__ import annotations

import io
import itertools
import json
import logging
import os
import sys
import tempfile
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch

from cropl.callbacks.checkpoint import Checkpoint
from cropl.data.stream import StartMethod
from cropl.data.writer import ShardWriter
from cropl.datamodules.shards import ShardsDataModule
from cropl.evaluation import facts
from cropl.evaluation.pipeline import Pipeline, pipeline
from cropl.models.vlm import load_vlm
from cropl.modules.localizer import LocalizerModule
from cropl.testbed import weights
from cropl.testbed.samples import samples
from tests.soak.sampler import Sampler

SAMPLES, GLOBAL_BATCH, WORKERS = 32, 8, 2
METHOD: StartMethod = "forkserver"
QUESTIONS, REOPEN = 24, 10
"""Questions after each epoch, and epochs that a pipeline lives."""


def write_shards(folder: Path, count: int = SAMPLES) -> Path:
    """Scenes of the testbed, to train on."""
    with ShardWriter(folder, samples_per_shard=8) as writer:
        for sample in samples("train", count):
            writer.write(sample)
    return folder


def pairs() -> Iterator[tuple[bytes, str]]:
    """Questions without end, with their pictures as files hold them."""
    made = []
    for sample in samples("test", 48):
        file = io.BytesIO()
        sample.picture().save(file, "PNG")
        made.append((file.getvalue(), sample.question))
    return itertools.cycle(made)


class Soak(L.Callback):
    """Asks after every epoch, and ends the training when the time is over and so many epochs are done."""

    def __init__(self, seconds: float, epochs: int, reopen: int, questions: int) -> None:
        self.vlm = load_vlm(weights.resolve("testbed:llava"), device="cpu")
        self.until, self.least, self.reopen, self.asked = time.monotonic() + seconds, epochs, reopen, questions
        self.pairs = pairs()
        self.stream: Pipeline | None = None
        self.epochs = self.steps = self.questions = self.opened = self.without = 0

    def on_train_batch_end(self, *args: Any) -> None:
        self.steps += 1

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        if self.epochs % self.reopen == 0:
            self.close()
            self.stream = pipeline(
                self.pairs, "testbed:localizer", self.vlm, budget=64, batch_size=4, device="cpu", threads=1
            )
            self.opened += 1
        assert self.stream is not None
        for result in itertools.islice(self.stream, self.asked):
            self.questions += 1
            self.without += result.error is not None or result.fallback is not None
        self.epochs += 1
        if time.monotonic() > self.until and self.epochs >= self.least:
            trainer.should_stop = True

    def localizer(self) -> int | None:
        """The process that localizes."""
        return None if self.stream is None else getattr(self.stream.stage, "pid", None)

    def close(self) -> None:
        """End the pipeline."""
        if self.stream is not None:
            self.stream.close()


def soak(
    seconds: float, interval: float = 10, epochs: int = 1, reopen: int = REOPEN, questions: int = QUESTIONS
) -> dict[str, Any]:
    """Train and answer by turns; what was done, and the samples of what the processes held.

    Args:
        seconds: to go on for, and until `epochs` are done.
        interval: seconds between samples.
        reopen: epochs that a pipeline lives.
        questions: after each epoch.
    """
    with tempfile.TemporaryDirectory(prefix="cropl-soak-") as folder:
        shards = write_shards(Path(folder) / "shards")
        torch.set_num_threads(1)
        L.seed_everything(0, verbose=False)
        data = ShardsDataModule(
            str(shards), global_batch=GLOBAL_BATCH, num_workers=WORKERS, start_method=METHOD, verify="full"
        )
        module = LocalizerModule(weights.resolve("testbed:qwen2_vl"), lr=1e-4, codec="tokens", muon=True)
        turns = Soak(seconds, epochs, reopen, questions)
        trainer = L.Trainer(
            accelerator="cpu", devices=1, max_epochs=-1, max_steps=10**6, logger=False, enable_progress_bar=False,
            enable_model_summary=False, num_sanity_val_steps=0, default_root_dir=folder,
            callbacks=[turns, Checkpoint(f"{folder}/checkpoints", every_n_train_steps=5 * SAMPLES // GLOBAL_BATCH)],
        )  # fmt: skip
        with Sampler(interval, turns.localizer) as sampler:
            try:
                trainer.fit(module, data)
            finally:
                turns.close()
        files = sum(path.is_file() for path in Path(folder).rglob("*"))
    return {
        "seconds": round(seconds), "interval": interval, "start_method": METHOD, "epochs": turns.epochs,
        "steps": turns.steps, "questions": turns.questions, "without_region_or_answer": turns.without,
        "pipelines": turns.opened, "files_at_the_end": files, "samples": sampler.samples,
    }  # fmt: skip


def main() -> None:
    """Soak for as many minutes as asked, and write it down."""
    minutes, out = float(sys.argv[1]), Path(sys.argv[2])
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    told = soak(60 * minutes)
    about = {
        "command": f"python -m tests.soak.run {sys.argv[1]} {sys.argv[2]}", "commit": facts.commit(),
        "hardware": facts.hardware(torch.device("cpu")), "cores": os.cpu_count(), "versions": facts.versions(),
    }  # fmt: skip
    out.write_text(json.dumps({**about, **told}, indent=1) + "\n", encoding="utf-8")
    print(f"written: {out}")


if __name__ == "__main__":
    main()
