"""The stream: reads the batches that it is told, in worker processes or without, and decodes nothing before its turn.

With W workers, worker w makes the batches w, w + W, ...: DataLoader returns them in order, so their number does not
matter. A sample that cannot be decoded is replaced by another one that does not count (`Sample.valid` is False), so
that no later sample moves; it is told and counted, and too many are an error.
"""

from __future__ import annotations

import logging
import multiprocessing
import pickle
import pickletools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from multiprocessing.context import BaseContext
from typing import Any, Literal

import numpy as np
import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from cropl.data.manifest import SampleError, ShardError
from cropl.data.parcel import pack, unpack
from cropl.data.sample import Sample
from cropl.data.shards import ShardReader
from cropl.data.workers import batches, check_sockets, end_with_parent

_log = logging.getLogger(__name__)

MAX_BAD_IN_A_ROW = 100
TOLD = 5
"""Samples that were left out are named, up to this many."""

StartMethod = Literal["forkserver", "spawn", "fork"]
Collate = Callable[[list[Sample]], Any]

# B batches, M samples of a batch


@dataclass
class Delivery:
    """A batch on its way out of a worker, with the reasons for which samples were left out of it."""

    batch: Any
    skipped: list[str]
    error: ValueError | OSError | None = None
    """What went wrong, where there is no batch: raised as it is where it arrives, and not as a worker's traceback."""


class SampleStream(IterableDataset[Delivery]):
    """Batches of samples, for one process.

    Args:
        reader: the shards.
        index_BM: sample numbers of each batch.
        valid_BM: False marks samples that only fill their batch; all count by default.
        collate: makes a batch of a list of `Sample`; runs in the worker. None yields the list.
        skip_bad: leave out samples that cannot be decoded; otherwise they are an error.
    """

    def __init__(
        self,
        reader: ShardReader,
        index_BM: np.ndarray,
        valid_BM: np.ndarray | None = None,
        collate: Collate | None = None,
        skip_bad: bool = False,
    ) -> None:
        self.reader, self.index_BM, self.collate, self.skip_bad = reader, index_BM, collate, skip_bad
        self.valid_BM = np.ones(index_BM.shape, dtype=bool) if valid_BM is None else valid_BM

    def __len__(self) -> int:
        return len(self.index_BM)

    def __iter__(self) -> Iterator[Delivery]:
        worker = get_worker_info()
        if worker:
            end_with_parent()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        for index_M, valid_M in zip(self.index_BM[first::step].tolist(), self.valid_BM[first::step].tolist()):
            try:
                yield self._delivery(index_M, valid_M)
            except (ValueError, OSError) as error:
                yield Delivery(None, [], error)

    def _delivery(self, index_M: list[int], valid_M: list[bool]) -> Delivery:
        found: list[Sample | None] = []
        skipped: list[str] = []
        for index, valid in zip(index_M, valid_M):
            try:
                sample = self.reader[index]
                found.append(sample if valid else replace(sample, valid=False))
            except SampleError as error:
                if not self.skip_bad:
                    raise
                found.append(None)
                skipped.append(str(error))
        if skipped:
            spare = next((sample for sample in found if sample is not None), None) or self._spare(skipped[0])
            samples = [replace(spare, valid=False) if sample is None else sample for sample in found]
        else:
            samples = [sample for sample in found if sample is not None]
        if self.collate is None:  # the pictures travel as they are
            return Delivery([replace(sample, encoded=None) for sample in samples], skipped)
        return Delivery(self.collate(samples), skipped)

    def _spare(self, reason: str) -> Sample:
        """A stand-in for a batch of which nothing can be decoded: the first sample of the stream that can."""
        for index in self.index_BM.ravel()[:MAX_BAD_IN_A_ROW].tolist():
            try:
                return self.reader[index]
            except SampleError:
                continue
        raise ShardError(f"none of {min(MAX_BAD_IN_A_ROW, self.index_BM.size)} samples can be decoded; one: {reason}")


class StreamLoader:
    """A row of epochs for a training loop: each iteration opens the stream of the current position.

    It is no DataLoader, so that a framework leaves its order alone.

    Args:
        open_stream: returns the stream of the current position; called once an epoch.
        batches: batches of a whole epoch, which is its length.
        num_workers: worker processes.
        start_method: of the workers; `forkserver`, unlike `fork`, is safe beside communication threads.
        max_skipped: samples that may be left out of a row of batches, in this process.

    Attributes:
        skipped: samples that were left out so far.
    """

    def __init__(
        self,
        open_stream: Callable[[], SampleStream],
        batches: int,
        num_workers: int = 0,
        start_method: StartMethod = "forkserver",
        max_skipped: int = 0,
    ) -> None:
        self.open_stream, self.batches, self.num_workers = open_stream, batches, num_workers
        self.start_method, self.max_skipped = start_method, max_skipped
        self.skipped = 0

    def __len__(self) -> int:
        return self.batches

    def __iter__(self) -> Iterator[Any]:
        stream = self.open_stream()
        loader = DataLoader(
            stream,
            batch_size=None,
            num_workers=self.num_workers,
            multiprocessing_context=self._context(stream),
            collate_fn=pack if self.num_workers else _as_is,
            generator=torch.Generator(),  # or it would draw its workers' seeds from the model's random numbers
        )
        skipped: list[str] = []
        for made in batches(loader):
            delivery: Delivery = unpack(made) if self.num_workers else made
            if delivery.error is not None:
                raise delivery.error
            skipped += delivery.skipped
            self._tell(delivery.skipped)
            if len(skipped) > self.max_skipped:
                raise ShardError(
                    f"{len(skipped)} samples of this epoch cannot be decoded, more than the {self.max_skipped} that "
                    f"may be left out; the last: {skipped[-1]} (`cropl shards verify` lists damaged shards)"
                )
            yield delivery.batch

    def _tell(self, reasons: list[str]) -> None:
        """Say the first few; all are counted."""
        for reason in reasons:
            self.skipped += 1
            if self.skipped <= TOLD:
                last = "; further ones are only counted" if self.skipped == TOLD else ""
                _log.warning("left out, at most %d may be: %s%s", self.max_skipped, reason, last)

    def _context(self, stream: SampleStream) -> BaseContext | None:
        if not self.num_workers:
            return None
        check_sockets()
        context = multiprocessing.get_context(self.start_method)
        if self.start_method == "forkserver":
            # The server imports once what the stream needs; the workers, new in every epoch, are forked from it in no
            # time. Protocol 2 names the modules of all classes in plain text.
            steps = pickletools.genops(pickle.dumps(stream.collate, protocol=2))
            modules = {str(argument).split()[0] for step, argument, _ in steps if step.name == "GLOBAL"}
            context.set_forkserver_preload(["__main__", __name__, *sorted(modules - {"__main__"})])
        return context

    def state_dict(self) -> dict[str, Any]:
        """Nothing: whoever opens the stream keeps the position. A framework that saves loaders finds the hooks here."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Nothing, see `state_dict`."""


def _as_is(batch: Any) -> Any:
    return batch
