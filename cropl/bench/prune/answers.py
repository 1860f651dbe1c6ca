"""What whole answers take: totals by their length, with what goes before them, and a decoding step."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

from cropl.bench.prune.front import Front
from cropl.bench.prune.time import speedup, summary

Stamps = Sequence[float]


def answers(pairs: Sequence[tuple[Stamps, Stamps]], lengths: Sequence[int], front: Front) -> dict[str, Any]:
    """Seconds and speed-ups of answers, by their length, and of a decoding step.

    Args:
        pairs: seconds to each new token, of ours and of the dense run next to it.
        lengths: of answers, in tokens.
        front: seconds of what goes before each pair. Where a localizer is needed and there is none, no total with it
            is told.
    """
    made: dict[str, Any] = {}
    for length in lengths:
        totals = [(ours[length - 1], dense[length - 1]) for ours, dense in pairs]
        columns = {
            "llm": speedup(totals, 1.0),
            "vision": speedup(totals, 1.0, ours=front.tower, both=front.vision),
        }
        if front.ours is not None:
            columns["localizer"] = speedup(totals, 1.0, ours=front.ours, both=front.vision)
        if front.localizer is not None:  # computed: on a device of its own, the localizer is at the next batch
            columns["overlapped"] = speedup(totals, 1.0, ours=front.tower, both=front.vision, beside=front.localizer)
        made[str(length)] = {
            **summary([ours for ours, _ in totals]),
            "dense": summary([dense for _, dense in totals]),
            "speedup": {name: measured(column) for name, column in columns.items()},
        }
    if max(lengths) > 1:
        made["step"] = step(pairs, max(lengths))
    return made


def step(pairs: Sequence[tuple[Stamps, Stamps]], longest: int) -> dict[str, Any]:
    """Seconds of a decoding step, and its speed-up, from answers of this length."""
    steps = [[(run[longest - 1] - run[0]) / (longest - 1) for run in pair] for pair in pairs]
    ours, dense = (median(column) for column in zip(*steps))
    return {"seconds": ours, "dense": dense, "speedup": median(d / o for o, d in steps)}


def measured(column: dict[str, Any]) -> dict[str, Any]:
    """A speed-up without an ideal."""
    return {name: column[name] for name in ("measured", "interval", "pairs")}
