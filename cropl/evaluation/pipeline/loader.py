"""A loader's batches with their regions, found ahead: while one is answered, the localizer works on those behind it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
from PIL import Image

from cropl.data.sample import Sample
from cropl.errors import RunError
from cropl.evaluation.pipeline.items import Asked, Located
from cropl.evaluation.pipeline.locate import Load, Locator
from cropl.evaluation.pipeline.process import ProcessStage
from cropl.evaluation.pipeline.reader import Reader
from cropl.evaluation.pipeline.stage import Stage, ThreadStage
from cropl.grid import Region
from cropl.models.region_sources import Predicted


class LocalizedAhead:
    """Batches of samples in the loader's order, as dicts: `samples`, `valid` where the loader marks it, and `regions`.

    The regions are those that :class:`~cropl.models.region_sources.Predicted` finds of each batch. The localizer starts
    with an iteration and ends with it, also where it is broken off. The loader is read in a thread of its own.

    Args:
        loader: gives lists of `Sample`, or dicts with `samples`.
        localizer: name or folder of one, which is loaded as float32 in a process of its own; or a picklable function
            that makes one there; or an object with `locate`, which runs in a thread.
        ahead: batches that may be with the localizer in front of the one that was taken last. One more is read.
        device: of a localizer that is loaded by name.
        threads: of torch in the localizer's process; None is half of this one's. If the localizer is on the CPU, this
            process has so many fewer (but one) during an iteration.

    Raises:
        ValueError: `ahead` is below 1. From the iterator: an image cannot be used.
        RunError: from the iterator: the localizer cannot be loaded, is lost, or fails on a question.
    """

    def __init__(
        self,
        loader: Iterable[Any],
        localizer: str | Locator | Callable[[], Locator],
        ahead: int,
        device: str | None = None,
        threads: int | None = None,
    ) -> None:
        if ahead < 1:
            raise ValueError(f"ahead must be at least 1, got {ahead}")
        self.loader, self.localizer, self.ahead = loader, localizer, ahead
        self.device, self.threads = device, threads

    def __len__(self) -> int:
        return len(cast(Sized, self.loader))

    def __iter__(self) -> Iterator[dict[str, Any]]:
        threads = max(1, torch.get_num_threads() // 2) if self.threads is None else self.threads
        stage = self._started(threads)
        with _lent(threads if isinstance(stage, ProcessStage) and self._on_cpu() else 0):
            yield from self._localized(stage)

    def _localized(self, stage: Stage) -> Iterator[dict[str, Any]]:
        reader = _Batches(self.loader, stage, 1, self.ahead)
        try:
            while (read := reader.next()) is not None:
                (batch,) = read.pairs
                try:
                    located = stage.take(read.number, len(read.asked))
                except EOFError:  # the reader has the error
                    break
                regions = [_region(*each) for each in zip(_samples(batch), located, strict=True)]
                marked = batch if isinstance(batch, Mapping) else {"samples": list(batch)}
                yield {**marked, "regions": regions}
            if reader.error is not None:
                raise reader.error
        finally:
            reader.stop()
            stage.close()

    def _started(self, threads: int) -> Stage:
        if hasattr(self.localizer, "locate"):
            return ThreadStage(_AsStep(cast(Locator, self.localizer)), raises=True)
        load = Load(self.localizer, self.device, torch.float32) if isinstance(self.localizer, str) else self.localizer
        return ProcessStage(_Make(load), threads, raises=True)

    def _on_cpu(self) -> bool:
        device = self.device or ("cuda" if torch.cuda.is_available() else "cpu")  # as models are loaded
        return torch.device(device).type == "cpu"


@contextmanager
def _lent(threads: int) -> Iterator[None]:
    """So many threads of torch fewer here, but one at least: more threads than cores slow both processes down."""
    lent = min(threads, torch.get_num_threads() - 1)
    torch.set_num_threads(torch.get_num_threads() - lent)
    try:
        yield
    finally:
        torch.set_num_threads(torch.get_num_threads() + lent)  # iterations may overlap, and end in any order


class _Batches(Reader):
    """Reads batches that are made already."""

    def _batches(self) -> Iterator[tuple[list[Any], list[Asked]]]:
        for batch in self._pairs:
            if self._stopped:
                return
            yield [batch], [Asked.of((sample.image, sample.question)) for sample in _samples(batch)]


class _AsStep:
    """Predicts as a step does: an answer that is no region counts as the whole image, and not as a failure."""

    def __init__(self, locator: Any) -> None:
        self._predicted, self.vlm = Predicted(locator), getattr(locator, "vlm", None)

    def locate(self, images: Sequence[Image.Image], questions: Sequence[str]) -> list[Region]:
        return self._predicted(images, questions)


@dataclass(frozen=True)
class _Make:
    load: Callable[[], Locator]

    def __call__(self) -> Locator:
        return _AsStep(self.load())


def _samples(batch: Any) -> Sequence[Sample]:
    found: Sequence[Sample] = batch["samples"] if isinstance(batch, Mapping) else batch
    return found


def _region(sample: Sample, located: Located) -> Region:
    if located.region is None:
        sample.picture()  # an image that cannot be used is the error that it is anywhere else
        raise RunError(f"sample {sample.key!r}: it could not be localized: {located.problem}")
    return located.region
