"""The same work as a plain `webdataset` pipeline: the tar files from front to back, its own decoder, our collate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import webdataset

from cropl.data.images import EXTENSIONS
from cropl.data.sample import Sample
from cropl.data.stream import Collate

IMAGES = (*EXTENSIONS.values(), "jpeg")


def records(files: Sequence[str], batch: int) -> Any:
    """Lists of `batch` raw samples, in the order of the shards."""
    return _tar(files).batched(batch, collation_fn=None)


def batches(files: Sequence[str], batch: int, collate: Collate) -> Any:
    """What `collate` makes of lists of `batch` samples, in the order of the shards."""
    # Only these: its other decoders unpickle.
    decoded = _tar(files).decode("pilrgb", only=[*IMAGES, "json"])
    return decoded.map(_sample).batched(batch, collation_fn=collate)


def with_workers(files: Sequence[str], batch: int, collate: Collate, workers: int) -> Iterator[Any]:
    """The same without an end, from worker processes that share the shards; there must be one for each of them."""
    dataset = batches(files, batch, collate).repeat()
    loader = webdataset.WebLoader(dataset, batch_size=None, num_workers=workers, multiprocessing_context="forkserver")
    return iter(loader)


def image_of(record: dict[str, Any]) -> Any:
    """The image of a record, encoded or decoded; None without one."""
    return next((record[name] for name in IMAGES if name in record), None)


def _tar(files: Sequence[str]) -> Any:
    return webdataset.WebDataset(list(files), shardshuffle=False, empty_check=False)


def _sample(record: dict[str, Any]) -> Sample:
    return Sample.from_json(record["json"], image_of(record))
