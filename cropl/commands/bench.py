"""`cropl bench`: measure speed, on one's own machine."""

from __future__ import annotations

from collections.abc import Sequence

from cropl.commands.verbs import run_verb

VERBS = {
    "data": "samples a second, from the shards to the batch, stage by stage",
    "pipeline": "localizing ahead: questions a second of both stages alone, at once, and coupled",
    "prune": "pruned prefills and answers against dense ones, beside what their FLOPs allow",
    "train": "training steps: tokens a second, MFU and memory, beside the naive way",
}


def run(args: Sequence[str]) -> int:
    """Hand over to the verb's own module."""
    return run_verb("bench", VERBS, args)
