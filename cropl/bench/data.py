"""The speed of the data path: its stages, the whole stream in one process and with workers, and plain `webdataset`.

What runs in one process is measured in CPU time, batch by batch in turn: other load on the machine then slows all of it
alike, and neither ratios nor the order depend on it much. What runs in worker processes is measured by the clock, from
the second batch of each worker on, so that their start does not count; `unsent`, the same workers that throw their
batches away, says what the machine has to give at that moment. Files are read from the page cache.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import torch
from PIL import Image

from cropl.bench import plain
from cropl.bench.inputs import Prepare
from cropl.bench.plain import image_of
from cropl.data.collate import Prepared, SampleCollate
from cropl.data.plan import epoch_order
from cropl.data.sample import Sample
from cropl.data.shards import ShardReader, open_folder
from cropl.data.stream import Collate, SampleStream, StreamLoader

# B batches of an epoch, M samples of a batch

STAGES = ("read", "decode", "processor", "collate")
ALONE = (*STAGES, "stream", "webdataset read", "webdataset stream")
TOGETHER = ("stream", "unsent", "webdataset stream")


@dataclass(frozen=True)
class Flow:
    """What went through worker processes: samples a second by the clock, CPU seconds a sample of all processes."""

    rate: float
    cpu: float


class DataBench:
    """Measures one folder of shards.

    Args:
        folder: shards with their manifest.
        prepare: the image processor, as a `VLM.prepare`.
        samples: that are measured, the first ones of the folder, in an order of training; cut to whole batches.
        batch: samples of a batch.
        workers: worker processes of the streams that have any.
        worker_batches: batches that each of them makes in a round.

    Raises:
        ShardError: there are no shards, or a sample is damaged.
        ValueError: a number is below 1.
    """

    def __init__(
        self, folder: str | Path, prepare: Prepare, samples: int, batch: int, workers: int, worker_batches: int
    ) -> None:
        given = {"samples": samples, "batch": batch, "workers": workers, "worker_batches": worker_batches - 2}
        for name, number in given.items():
            if number < 1:
                raise ValueError(f"{name} must be at least {3 if name == 'worker_batches' else 1}")
        self.reader = ShardReader(folder)
        self.collate = SampleCollate(prepare)
        samples = min(samples, len(self.reader))
        self.batch, self.workers, self.worker_batches = min(batch, samples), workers, worker_batches
        self.samples = samples // self.batch * self.batch
        order = epoch_order(self.reader.size_K, seed=0, epoch=0)
        self.index_BM = order[order < samples][: self.samples].reshape(-1, self.batch)
        first = self.reader.size_K.cumsum() - self.reader.size_K
        shards, manifest = open_folder(folder, "off")
        self.files = [str(shards.path(shard)) for shard, start in zip(manifest.shards, first) if start < samples]

    def facts(self) -> dict[str, Any]:
        """What is measured."""
        bytes_N = [len(image) for image in map(image_of, map(self.reader.record, self.index_BM.ravel())) if image]
        return {
            "samples": self.samples,
            "batch": self.batch,
            "workers": self.workers,
            "worker_batches": self.worker_batches,
            "shards": len(self.files),
            "width": float(self.reader.width_N[self.index_BM].mean()),
            "height": float(self.reader.height_N[self.index_BM].mean()),
            "image_bytes": sum(bytes_N) / max(len(bytes_N), 1),
        }

    def alone(self) -> dict[str, float]:
        """One round in this process: CPU seconds a sample of everything in `ALONE`."""
        spent = dict.fromkeys(ALONE, 0.0)

        @contextmanager
        def lap(name: str) -> Iterator[None]:
            begun = time.thread_time()
            yield
            spent[name] += time.thread_time() - begun

        stream = iter(StreamLoader(lambda: SampleStream(self.reader, self.index_BM, collate=self.collate), 0))
        theirs = iter(plain.batches(self.files, self.batch, self.collate))
        their_records = iter(plain.records(self.files, self.batch))
        for index_M in self.index_BM.tolist():
            with lap("read"):
                records = {index: self.reader.record(index) for index in index_M}
            held = _Held(self.reader, records)
            with lap("decode"):
                samples = [held[index] for index in index_M]
            pictures = [sample.picture() for sample in samples if sample.image is not None]
            with lap("processor"):
                prepared = [self.collate.prepare(picture) for picture in pictures]
            collate = SampleCollate(_Handed(prepared or [self.collate.prepare(Image.new("RGB", (56, 56)))]))
            with lap("collate"):
                collate(samples)
            with lap("stream"):
                next(stream)
            with lap("webdataset read"):
                next(their_records)
            with lap("webdataset stream"):
                next(theirs)
        return {name: seconds / self.samples for name, seconds in spent.items()}

    def together(self, name: str) -> Flow | None:
        """One round of something in `TOGETHER`, with worker processes; None without a shard for each worker."""
        collate = _Clocked(self.collate, send=name != "unsent")
        batches = self.workers * self.worker_batches
        if name == "webdataset stream":
            if len(self.files) < self.workers:
                return None
            return self._flow(islice(plain.with_workers(self.files, self.batch, collate, self.workers), batches))
        index_BM = np.resize(self.index_BM, (batches, self.batch))
        return self._flow(StreamLoader(lambda: SampleStream(self.reader, index_BM, collate=collate), 0, self.workers))

    def _flow(self, stream: Iterable[tuple[int, float, Any]]) -> Flow:
        seen = [(process, spent, time.perf_counter(), time.process_time()) for process, spent, _ in stream]
        warm, last = seen[2 * self.workers - 1], seen[-1]  # every worker has sent two batches
        count = len(seen) - 2 * self.workers
        cpu: dict[int, list[float]] = {}
        for process, spent, _, _ in seen[self.workers :]:
            cpu.setdefault(process, []).append(spent)
        workers = sum(spent[-1] - spent[0] for spent in cpu.values()) / sum(len(spent) - 1 for spent in cpu.values())
        own = (last[3] - warm[3]) / count
        return Flow(count * self.batch / (last[2] - warm[2]), (workers + own) / self.batch)


class _Held(ShardReader):
    """A reader whose reading has been done."""

    def __init__(self, reader: ShardReader, records: dict[int, dict[str, Any]]) -> None:
        self.__dict__.update(reader.__dict__)
        self.records = records

    def record(self, index: int) -> dict[str, Any]:
        return self.records[index]


class _Handed:
    """An image processor whose work has been done."""

    def __init__(self, prepared: list[Prepared]) -> None:
        self.prepared = iter(prepared)

    def __call__(self, picture: Image.Image) -> Prepared:
        return next(self.prepared)


class _Clocked:
    """A collate that also tells the process and its CPU time so far; with `send=False` it tells nothing else."""

    def __init__(self, collate: Collate, send: bool) -> None:
        self.collate, self.send = collate, send

    def __call__(self, samples: list[Sample]) -> tuple[int, float, Any]:
        batch = self.collate(samples)
        return os.getpid(), time.process_time(), batch if self.send else None


def measure(bench: DataBench, rounds: int, advance: Callable[[str], None] = lambda what: None) -> dict[str, Any]:
    """Run everything in turn, several times, and report it.

    Args:
        bench: what is measured.
        rounds: how often; every figure is the median over them.
        advance: called after each part of a round with its name, `1 + len(TOGETHER)` times a round.

    Raises:
        ValueError: `rounds` is below 1.
    """
    if rounds < 1:
        raise ValueError("rounds must be at least 1")
    threads = torch.get_num_threads()
    load = [os.getloadavg()[0]]
    alone: list[dict[str, float]] = []
    together: dict[str, list[Flow]] = {name: [] for name in TOGETHER}
    try:
        torch.set_num_threads(1)  # as a worker process has it
        bench.collate([bench.reader[index] for index in bench.index_BM[0].tolist()])  # what is only done once
        for _ in range(rounds):
            alone.append(bench.alone())
            advance("one process")
            for name in TOGETHER:
                flow = bench.together(name)
                together[name] += [flow] if flow else []
                advance(name)
    finally:
        torch.set_num_threads(threads)
    load.append(os.getloadavg()[0])
    return {**bench.facts(), "rounds": rounds, "load": load, **report(alone, together, bench.workers)}


def report(alone: list[dict[str, float]], together: dict[str, list[Flow]], workers: int) -> dict[str, Any]:
    """The figures and their ratios: medians over rounds, times in microseconds a sample.

    `ratios` has `stream`: the rate of the whole stream in one process, against 1 / (sum of the stages); `workers`: its
    rate with workers against `workers` x one process; `sent`: against that of workers that send nothing;
    `webdataset_*`: the rate of ours against that of webdataset. None is what could not be measured.
    """
    cpu = {name: median(spent[name] for spent in alone) for name in ALONE}
    stages = sum(cpu[name] for name in STAGES)
    rate = {name: median(flow.rate for flow in flows) if flows else None for name, flows in together.items()}

    def ratio(ours: float | None, other: float | None) -> float | None:
        return ours / other if ours and other else None

    return {
        "alone": {
            name: {
                "cpu_us": 1e6 * cpu[name],
                "samples_per_s": 1 / cpu[name],
                "share": cpu[name] / stages if name in STAGES else None,
                "rounds_cpu_us": [1e6 * spent[name] for spent in alone],
            }
            for name in ALONE
        },
        "together": {
            name: {
                "cpu_us": 1e6 * median(flow.cpu for flow in flows) if flows else None,
                "samples_per_s": rate[name],
                "samples_per_s_per_worker": ratio(rate[name], workers),
                "rounds_samples_per_s": [flow.rate for flow in flows],
            }
            for name, flows in together.items()
        },
        "ratios": {
            "stream": stages / cpu["stream"],
            "workers": ratio(rate["stream"], workers / cpu["stream"]),
            "sent": ratio(rate["stream"], rate["unsent"]),
            "webdataset_read": cpu["webdataset read"] / cpu["read"],
            "webdataset_stream": cpu["webdataset stream"] / cpu["stream"],
            "webdataset_workers": ratio(rate["stream"], rate["webdataset stream"]),
        },
        "bound": max(STAGES, key=cpu.__getitem__),
    }
