"""cropl cp NAME DESTINATION: copy a recipe, to change it."""

from __future__ import annotations

from collections.abc import Sequence

from cropl import recipe
from cropl.commands.arguments import Parser


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code."""
    parser = Parser("cp", __doc__)
    parser.add_argument("name", help="a name that `cropl ls` lists, or a path")
    parser.add_argument("destination", help="file or folder")
    parser.add_argument("--clobber", action="store_true", help="overwrite the file if it exists")
    given = parser.read(args)
    if given is not None:
        print(recipe.copy(given.name, given.destination, given.clobber))
    return 0
