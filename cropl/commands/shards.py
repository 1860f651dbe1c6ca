"""`cropl shards`: build, verify and inspect folders of shards."""

from __future__ import annotations

from collections.abc import Sequence

from cropl.commands.verbs import run_verb

VERBS = {
    "build": "read published files and write them as shards",
    "verify": "compare shards with their manifest, byte for byte",
    "inspect": "count what is in shards, and draw some of it",
}


def run(args: Sequence[str]) -> int:
    """Hand over to the verb's own module."""
    return run_verb("shards", VERBS, args)
