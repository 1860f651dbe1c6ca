"""What several commands print alike. Imports nothing heavy."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console
    from rich.status import Status


def table_console(width: int = 120) -> Console:
    """A console for tables: `width` characters wide where the output is no terminal, a file for example."""
    from rich.console import Console

    console = Console()
    return console if console.is_terminal else Console(width=width)


def waiting(what: str) -> Status:
    """A line on the terminal for as long as its block lasts; nothing where the errors go elsewhere."""
    from rich.console import Console

    return Console(stderr=True).status(what)


def counted(number: int, what: str) -> str:
    """`1 shard`, `1,000 shards`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
