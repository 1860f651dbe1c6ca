"""Tables of a suite as Markdown, LaTeX, CSV and HTML: ours, the paper's and the difference, wherever there are both."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from html import escape

from cropl.evaluation import markup
from cropl.evaluation.reporting.table import Cell, Line, Table

UNPAIRED = "A line without the paper's below it is not in the paper's table."


def notes(table: Table) -> list[str]:
    """What is printed below a table."""
    alone = table.compared and any(line.paper is None for line in table.lines())
    return [*table.notes, *([UNPAIRED] if alone else [])]


def _stacked(line: Line) -> list[list[str]]:
    """The printed lines of a run: ours, and where it has a counterpart the paper's and the difference below."""
    rows = [[line.label, *(cell.mine() for cell in line.cells)]]
    if line.paper is not None:
        rows.append([f"paper: {line.paper}", *(cell.theirs() for cell in line.cells)])
        rows.append(["difference", *(cell.gap() for cell in line.cells)])
    return rows


def markdown(table: Table) -> str:
    """A GitHub table; a group's label takes a line of its own, the paper's figures are in italics."""

    def row(cells: Sequence[str]) -> str:
        return f"| {' | '.join(map(markup.cell, cells))} |"

    lines = [f"### {markup.cell(table.title)}", "", row([table.head, *table.columns])]
    lines.append(f"| --- |{' ---: |' * len(table.columns)}")
    for label, group in table.groups:
        if label:
            lines.append(f"| **{markup.cell(label)}** |{'  |' * len(table.columns)}")
        for line in group:
            mine, *below = _stacked(line)
            lines.append(row(mine))
            lines += [f"| {' | '.join(f'*{markup.cell(c)}*' if c != '-' else c for c in cells)} |" for cells in below]
    lines += ["", *(f"- {markup.cell(note)}" for note in notes(table)), ""]
    return "\n".join(lines)


_TEX = {
    "\\": r"\textbackslash{}", "&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
    "~": r"\textasciitilde{}", "^": r"\textasciicircum{}", "‡": r"$\ddagger$", "<": r"\textless{}",
    ">": r"\textgreater{}", "|": r"\textbar{}",
}  # fmt: skip


def latex(tables: Sequence[Table]) -> str:
    r"""A file for `\input`; it needs the package booktabs."""
    parts = ["% Needs \\usepackage{booktabs}."]
    for table in tables:
        columns = len(table.columns)
        parts += ["", r"\begin{table}", r"\centering\small", rf"\caption{{{_tex(table.title)}}}"]
        parts += [rf"\label{{tab:{table.key}}}", rf"\begin{{tabular}}{{l{'r' * columns}}}", r"\toprule"]
        parts.append(_tex_row([table.head, *table.columns]))
        for label, group in table.groups:
            parts.append(r"\midrule")
            if label:
                parts.append(rf"\multicolumn{{{columns + 1}}}{{l}}{{\textbf{{{_tex(label)}}}}} \\")
            for line in group:
                mine, *below = _stacked(line)
                parts.append(_tex_row(mine))
                parts += [_tex_row(cells, below=True) for cells in below]
        parts += [r"\bottomrule", r"\end{tabular}", ""]
        parts += [rf"\par\footnotesize {_tex(note)}" for note in notes(table)]
        parts.append(r"\end{table}")
    return "\n".join([*parts, ""])


def _tex(text: str) -> str:
    return "".join(_TEX.get(letter, letter) for letter in text)


def _tex_row(cells: Sequence[str], below: bool = False) -> str:
    label, *figures = map(_tex, cells)
    shown = [f"${figure}$" if figure[:1] in "+-" and figure != "-" else figure for figure in figures]
    if below:
        label, shown = rf"\quad\textit{{{label}}}", [rf"\textit{{{figure}}}" for figure in shown]
    return " & ".join([label, *shown]) + r" \\"


CSV_COLUMNS = (
    "table", "group", "run", "arm", "column", "ours", "ci95_low", "ci95_high", "paper_row", "paper", "difference",
    "scored_by",
)  # fmt: skip


def comma_separated(tables: Sequence[Table]) -> str:
    """One line per cell, figures unrounded: what a spreadsheet or a plotting script reads."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(CSV_COLUMNS)
    for table in tables:
        for label, group in table.groups:
            for line in group:
                for column, cell in zip(table.columns, line.cells, strict=True):
                    low, high = cell.ci95 if cell.interval() and cell.ci95 else ("", "")
                    ours = cell.text if cell.ours is None else cell.ours
                    place = (table.key, label, line.label, line.arm or "", column)
                    told = (ours, low, high, line.paper or "", _known(cell.paper), _known(cell.difference), cell.source)
                    writer.writerow([*place, *told])
    return out.getvalue()


def _known(value: float | None) -> float | str:
    return "" if value is None else round(value, 6)


def html(table: Table) -> str:
    """An HTML table: in each cell ours, with its interval as a tip, and small below it the paper's and the gap."""
    head = "".join(f"<th class=n>{escape(text)}</th>" for text in table.columns)
    body = []
    for label, group in table.groups:
        if label:
            body.append(f'<tr class="group"><td colspan="{len(table.columns) + 1}">{escape(label)}</td></tr>')
        for line in group:
            paper = f"<i>paper: {escape(line.paper)}</i>" if line.paper is not None else ""
            cells = "".join(_html_cell(cell, line.paper is not None) for cell in line.cells)
            body.append(f"<tr><td>{escape(line.label)}{paper}</td>{cells}</tr>")
    told = "".join(f"<li>{escape(note)}</li>" for note in notes(table))
    return (
        f'<table class="paired"><thead><tr><th>{escape(table.head)}</th>{head}</tr></thead>'
        f"<tbody>{''.join(body)}</tbody></table>{f'<ul class=notes>{told}</ul>' if told else ''}"
    )


def _html_cell(cell: Cell, paired: bool) -> str:
    tip = f' title="95 % interval {cell.interval()}"' if cell.interval() else ""
    below = ""
    if paired:
        gap = f' <span class="gap">{escape(cell.gap())}</span>' if cell.difference is not None else ""
        below = f"<i>{escape(cell.theirs())}{gap}</i>"
    return f'<td class="n"{tip}>{escape(cell.mine())}{below}</td>'
