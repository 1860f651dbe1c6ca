"""cropl ls [PREFIX]: the built-in recipes, with what each is for."""

from __future__ import annotations

from collections.abc import Sequence

from cropl import recipe
from cropl.commands.arguments import Parser
from cropl.errors import UsageError


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code."""
    parser = Parser("ls", __doc__)
    parser.add_argument("prefix", nargs="?", default="", help="only names that start with this, e.g. testbed/")
    given = parser.read(args)
    if given is None:
        return 0
    names = recipe.names(given.prefix)
    if not names:
        raise UsageError(f"no built-in recipe starts with {given.prefix!r}; `cropl ls` lists them all")
    width = max(len(name) for name in names)
    for name in names:
        print(f"{name:<{width}}  {recipe.describe(name)}".rstrip())
    return 0
