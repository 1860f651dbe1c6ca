"""`cropl shards`: build, verify and inspect folders of shards."""

from __future__ import annotations

import importlib
from collections.abc import Sequence

from cropl.errors import USAGE, UsageError, nearest

VERBS = {
    "build": "read published files and write them as shards",
    "verify": "compare shards with their manifest, byte for byte",
    "inspect": "count what is in shards, and draw some of it",
}


def run(args: Sequence[str]) -> int:
    """Hand over to the verb's own module."""
    if not args or args[0] in ("-h", "--help"):
        width = max(map(len, VERBS))
        lines = "\n".join(f"  {verb:<{width}}  {what}" for verb, what in VERBS.items())
        print(f"usage: cropl shards VERB ...\n\n{lines}\n\n`cropl shards VERB --help` says more.")
        return 0 if args else USAGE
    verb, rest = args[0], list(args[1:])
    if verb not in VERBS:
        raise UsageError(f"unknown command 'shards {verb}'{nearest(verb, list(VERBS), 'commands')}")
    return int(importlib.import_module(f"cropl.commands.shards_{verb}").run(rest) or 0)
