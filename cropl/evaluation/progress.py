"""Progress of a long run: a rich bar with the time left on a terminal, a plain line now and then when piped."""

from __future__ import annotations

import sys
import time
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)


class Stages:
    """A context in which stages are shown one after the other.

    Args:
        console: where to; standard error by default, so that results can be piped.
        every: seconds between plain lines when the console is no terminal.
        quiet: show nothing.
    """

    def __init__(self, console: Console | None = None, every: float = 15.0, quiet: bool = False) -> None:
        self.console = console or Console(file=sys.stderr, quiet=quiet)
        self._heading = ""
        self.every = every
        self._bar: Progress | None = None
        if self.console.is_terminal:
            self._bar = Progress(
                TextColumn("{task.description:<34}"), BarColumn(bar_width=None), MofNCompleteColumn(),
                TimeElapsedColumn(), TextColumn("left"), TimeRemainingColumn(), console=self.console,
            )  # fmt: skip
        self._task: TaskID | None = None
        self._name, self._done, self._began, self._said = "", 0, 0.0, 0.0
        self._total: int | None = None

    def __enter__(self) -> Stages:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()

    def heading(self, name: str) -> None:
        """What the following stages are of; "" is nothing in particular."""
        self._heading = f"{name}: " if name else ""

    def stage(self, name: str, total: int | None = None) -> None:
        """Begin a stage of `total` items, or of a number that nobody knows."""
        name = self._heading + name
        self._name, self._total, self._done = name, total, 0
        self._began = self._said = time.perf_counter()
        if self._bar is not None:
            self._task = self._bar.add_task(name, total=total)

    def advance(self, detail: str, count: int = 1) -> None:
        """`count` more are done; `detail` says what is being worked on."""
        self._done += count
        if self._bar is not None and self._task is not None:
            text = f"{self._name} [dim]{detail[:24]}[/]" if detail and self._done != self._total else self._name
            self._bar.update(self._task, advance=count, description=text)
            return
        now = time.perf_counter()
        if now - self._said >= self.every or self._done == self._total:
            self._say(now - self._began)
            self._said = now

    def _say(self, seconds: float) -> None:
        """A plain line."""
        if self._total is None:
            text = f"{self._name}: {self._done}"
        elif self._done < self._total:
            left = seconds * (self._total - self._done) / max(self._done, 1)
            text = f"{self._name}: {self._done} of {self._total}, about {left:.0f} s left"
        else:
            text = f"{self._name}: {self._done} of {self._total} in {seconds:.0f} s"
        self.console.print(text, soft_wrap=True, highlight=False)
