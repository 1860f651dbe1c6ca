"""The verbs of the command line, and those that have verbs of their own, such as `cropl shards build`.

Each verb is a module, imported when it is called. Imports nothing heavy.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence

from cropl.errors import USAGE, UsageError, nearest

TRAINING_VERBS = {
    "fit": "train a module of a recipe",
    "validate": "run a recipe's validation",
    "test": "run a recipe's test",
    "predict": "run a recipe's predictions",
}
"""Those of LightningCLI."""

COMMANDS = {
    "evaluate": "answer a benchmark with several pruning methods and compare them",
    "report": "make tables and plots of stored evaluations",
    "score": "score a file of answers by a benchmark's official rules",
    "ask": "ask one question about one image",
    "demo": "a local web page to try it on",
    "answer": "answer a file or stream of questions, localizing ahead",
    "export": "write a training's checkpoint as a plain transformers folder",
    "consolidate": "make one checkpoint file of a sharded one",
    "calibrate": "size a localizer's regions so that they hold enough for a share of the questions",
    "shards": "build, verify and inspect shards of training and test data",
    "bench": "measure speed",
    "quickstart": "the whole path on the built-in testbed, in a few minutes",
    "check": "say whether recipes can run here, and what is missing",
    "doctor": "say what this machine has, and how to get what is missing",
    "completion": "print what makes a shell complete verbs, recipes and flags",
    "ls": "list the built-in recipes",
    "show": "print a recipe",
    "cp": "copy a recipe, to change it",
}
"""All others; each is the module `cropl.commands.VERB`."""

TRAINS = ("check", "quickstart")
"""Those that are handed what builds a training."""


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
