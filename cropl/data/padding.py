"""How much of a forward pass is padding, estimated from the manifest alone: as samples come, dealt out, and packed."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from cropl.data.packing import rows_of
from cropl.data.plan import Plan, lengths
from cropl.data.shards import ShardReader

# T steps of an epoch, G samples of a global batch, M samples of a forward pass


@dataclass(frozen=True)
class Padding:
    """Shares of the positions of an epoch's forward passes that are padding, by the plan's estimate of lengths.

    Attributes:
        random: samples in the order of the stream, each padded to the longest of its pass.
        dealt: the samples of a global batch dealt out by length (`Plan.deal`).
        packed: those, with short ones sharing a row (`rows_of`).
    """

    random: float
    dealt: float
    packed: float


def padding(reader: ShardReader, global_batch: int, micro_batch: int) -> Padding:
    """The padding of one epoch on one process, with this many samples in a step and in a forward pass.

    Raises:
        ValueError: the global batch is not a multiple of the forward pass.
    """
    plan = Plan(reader, global_batch)
    batches_TG = plan.epoch(0)
    length_N = np.maximum(1, lengths(reader).round().astype(np.int64))
    dealt = length_N[plan.deal(batches_TG, 1, micro_batch)].reshape(-1, micro_batch)
    random = length_N[batches_TG].reshape(-1, micro_batch)
    rows = np.array([len(rows_of(one)) for one in dealt.tolist()])
    return Padding(
        _share(random, np.full(len(random), micro_batch)),
        _share(dealt, np.full(len(dealt), micro_batch)),
        _share(dealt, rows),
    )


def _share(length_PM: np.ndarray, rows_P: np.ndarray) -> float:
    """Share of padding where pass p has this many rows of its longest sample's length."""
    return float(1 - length_PM.sum() / (length_PM.max(1) * rows_P).sum())
