"""Checks of what the command line is given: errors are one line, like all other user errors. Imports nothing heavy."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from cropl.errors import UsageError
from cropl.evaluation.arms import check_budget


class HelpShown(Exception):
    """`--help` has been printed; the command is done."""


class Parser(argparse.ArgumentParser):
    """argparse without abbreviations, raising `UsageError` where argparse would print its usage and exit."""

    def __init__(self, verb: str, description: str | None, epilog: str = "", **options: Any) -> None:
        super().__init__(
            f"cropl {verb}",
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
            **options,
        )

    def error(self, message: str) -> NoReturn:
        raise UsageError(f"{message} (`{self.prog} --help` shows the arguments)")

    def exit(self, status: int = 0, message: str | None = None) -> NoReturn:
        raise HelpShown

    def read(self, args: Sequence[str]) -> argparse.Namespace | None:
        """The parsed arguments; None when help was asked for (and printed)."""
        try:
            return self.parse_args(list(args))
        except HelpShown:
            return None


def integer(name: str, text: str, least: int = 0) -> int:
    """The integer that the option `name` was given; UsageError for other text, and below `least`."""
    try:
        value = int(text)
    except ValueError:
        value = least - 1
    if value < least:
        raise UsageError(f"{_flag(name)} {text}: must be an integer, at least {least}")
    return value


def number(name: str, text: str, least: float = 0) -> int | float:
    """The number that the option `name` was given, as an integer where it is written as one; UsageError as above."""
    value = _parsed(text)
    if not least <= value < math.inf:
        raise UsageError(f"{_flag(name)} {text}: must be a number, at least {least}")
    return value


def budget(text: str) -> int | float:
    """The `--budget` of an image: a count, or a share; UsageError for other text, and outside of (0, 1] or below 1."""
    value = _parsed(text)
    if not math.isfinite(value):
        raise UsageError(f"--budget {text}: must be a number of tokens, or a share in (0, 1]")
    check_budget(value, "--budget")
    return value


def _parsed(text: str) -> int | float:
    """The number, as an integer where it is written as one; NaN for other text."""
    try:
        return int(text)
    except ValueError:
        try:
            return float(text)
        except ValueError:
            return math.nan


def _flag(name: str) -> str:
    return f"--{name.replace('_', '-')}"


def check_writable(out: Path) -> None:
    """UsageError unless results can be written into the folder `out`, which is made: fail before the work."""
    if out.exists() and not out.is_dir():
        raise UsageError(f"out {out} is a file; give a folder")
    try:
        out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"out {out} cannot be made: {(error.strerror or str(error)).lower()}; give another") from None
    if not os.access(out, os.W_OK | os.X_OK):
        raise UsageError(f"out {out} cannot be written to; give another folder")
