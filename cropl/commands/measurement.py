"""What the `cropl bench` commands share: keys from a recipe, a file for the rows."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from cropl import recipe
from cropl.commands.arguments import check_writable
from cropl.errors import UsageError, check_keys


def configured(name: str, args: Sequence[str], counts: Sequence[str], optional: str) -> dict[str, Any]:
    """The keys of the built-in recipe `bench/NAME`, with the recipes and overrides of the arguments.

    Args:
        name: of the bench.
        args: the command's.
        counts: keys that are integers of at least 1.
        optional: the one of them that may be null.

    Raises:
        UsageError: a key is unknown, or one of `counts` is something else.
    """
    recipes, overrides = recipe.parse_flags(args)
    known = recipe.load([f"bench/{name}"])
    config = recipe.load([f"bench/{name}", *recipes], overrides)
    check_keys(config, list(known), f"bench {name}")
    for key in counts:
        number = config[key]
        if type(number) is not int and not (key == optional and number is None):
            raise UsageError(f"bench {name}: {key} must be an integer, got {number!r}")
        if number is not None and number < 1:
            raise UsageError(f"bench {name}: {key} must be at least 1, got {number}")
    return config


def result_file(name: str, config: dict[str, Any]) -> Path | None:
    """Where the key `out` wants the rows; UsageError if they could not be written there after the work."""
    out = None if config["out"] is None else Path(str(config["out"]))
    if out is not None:
        if out.is_dir():
            raise UsageError(f"out {out} is a folder; give a file, such as {out / name}.json")
        check_writable(out.parent)
    return out


def write(made: dict[str, Any], out: Path | None) -> None:
    """Write the rows, if a file was asked for, and say so."""
    if out is not None:
        out.write_text(json.dumps(made, indent=1) + "\n", encoding="utf-8")
        print(f"written: {out}")
