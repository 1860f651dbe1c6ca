"""`cropl bench`: measure speed, on one's own machine."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from cropl.errors import USAGE, UsageError, nearest

VERBS = {
    "data": "samples a second, from the shards to the batch, stage by stage",
}


def run(args: Sequence[str]) -> int:
    """Hand over to the verb's own module."""
    if not args or args[0] in ("-h", "--help"):
        width = max(map(len, VERBS))
        lines = "\n".join(f"  {verb:<{width}}  {what}" for verb, what in VERBS.items())
        print(f"usage: cropl bench VERB ...\n\n{lines}\n\n`cropl bench VERB --help` says more.")
        return 0 if args else USAGE
    verb, rest = args[0], list(args[1:])
    if verb not in VERBS:
        raise UsageError(f"unknown command 'bench {verb}'{nearest(verb, list(VERBS), 'commands')}")
    return int(importlib.import_module(f"cropl.commands.bench_{verb}").run(rest) or 0)
