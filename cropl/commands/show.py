"""cropl show NAME: print a recipe."""

from __future__ import annotations

from collections.abc import Sequence

from cropl import recipe
from cropl.commands.arguments import Parser


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code."""
    parser = Parser("show", __doc__)
    parser.add_argument("name", help="a name that `cropl ls` lists, or a path")
    given = parser.read(args)
    if given is not None:
        print(recipe.find(given.name).read_text(encoding="utf-8"), end="")
    return 0
