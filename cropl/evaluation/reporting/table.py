"""A table of a suite as data: each cell has our value, its interval, and the paper's value where it has one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field


@dataclass(frozen=True)
class Cell:
    """One figure.

    Attributes:
        ours: unrounded; None where there is none.
        ci95: its 95 % interval.
        paper: the paper's value, of which ours is to be held against.
        digits: behind the point.
        source: who scored it where that was not we, such as "server".
        comparable: whether ours and the paper's are about the same, so that their difference means something.
        text: stands in the place of ours where that is no number, such as "infeasible".
        share: percent that ours is of something, in brackets behind it.
    """

    ours: float | None = None
    ci95: Sequence[float] | None = None
    paper: float | None = None
    digits: int = 1
    source: str = ""
    comparable: bool = True
    text: str = ""
    share: float | None = None

    @property
    def difference(self) -> float | None:
        """Ours less the paper's, of unrounded figures."""
        if self.ours is None or self.paper is None or not self.comparable:
            return None
        return self.ours - self.paper

    def mine(self) -> str:
        """Ours as printed, "-" where there is none; with a mark where a server scored it."""
        if self.ours is None:
            return self.text or "-"
        share = "" if self.share is None else f" ({self.share:.1f} %)"
        return f"{self.ours:.{self.digits}f}{'*' if self.source else ''}{share}"

    def theirs(self) -> str:
        """The paper's as printed."""
        return "-" if self.paper is None else f"{self.paper:.{self.digits}f}"

    def gap(self) -> str:
        """The difference as printed, with its sign."""
        return "-" if self.difference is None else f"{self.difference:+.{self.digits}f}"

    def interval(self) -> str:
        """The interval as printed, empty where there is none."""
        if not self.ci95 or self.ci95[0] is None:
            return ""
        return f"{self.ci95[0]:.{self.digits}f}..{self.ci95[1]:.{self.digits}f}"


@dataclass
class Line:
    """One run.

    Attributes:
        label: what a person calls it.
        cells: one per column.
        arm: its key; None where the line is of several.
        paper: the paper's name of its counterpart; None where it has none.
    """

    label: str
    cells: list[Cell]
    arm: str | None = None
    paper: str | None = None


@dataclass
class Table:
    """Lines in groups, each with a label.

    Attributes:
        key: short and unique in a report, "table2".
        title: what it shows.
        head: of the column of labels.
        columns: heads of the cells.
        groups: (label, lines); a group without a label starts the table.
        notes: printed below it.
    """

    key: str
    title: str
    head: str
    columns: list[str]
    groups: list[tuple[str, list[Line]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def lines(self) -> list[Line]:
        """All of them, in order."""
        return [line for _, group in self.groups for line in group]

    @property
    def compared(self) -> bool:
        """Whether any cell has the paper's value beside ours."""
        return any(cell.paper is not None for line in self.lines() for cell in line.cells)
