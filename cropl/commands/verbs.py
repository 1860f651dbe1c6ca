"""Commands with verbs of their own, such as `cropl shards build`: each verb is a module, imported when it is called."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence

from cropl.errors import USAGE, UsageError, nearest


def run_verb(command: str, verbs: Mapping[str, str], args: Sequence[str]) -> int:
    """Hand over to `cropl.commands.COMMAND_VERB`, or print the verbs; returns the exit code.

    Args:
        command: its name.
        verbs: what each verb does, by its name.
        args: the verb first.

    Raises:
        UsageError: there is no such verb.
    """
    if not args or args[0] in ("-h", "--help"):
        width = max(map(len, verbs))
        lines = "\n".join(f"  {verb:<{width}}  {what}" for verb, what in verbs.items())
        print(f"usage: cropl {command} VERB ...\n\n{lines}\n\n`cropl {command} VERB --help` says more.")
        return 0 if args else USAGE
    verb, rest = args[0], list(args[1:])
    if verb not in verbs:
        raise UsageError(f"unknown command '{command} {verb}'{nearest(verb, list(verbs), 'commands')}")
    return int(importlib.import_module(f"cropl.commands.{command}_{verb}").run(rest) or 0)
