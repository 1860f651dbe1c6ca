"""Checks of what the command line is given: errors are one line, like all other user errors. Imports nothing heavy."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NoReturn

from cropl.errors import UsageError


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
