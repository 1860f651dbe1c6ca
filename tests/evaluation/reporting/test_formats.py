"""A suite's tables as text: all forms hold the same figures, and nothing breaks out of its cell."""

from __future__ import annotations

import csv
import io
import re

import pytest

from cropl.evaluation.reporting import formats
from cropl.evaluation.reporting.results import Results
from cropl.evaluation.reporting.suite_tables import tables
from cropl.evaluation.reporting.table import Cell, Line, Table
from tests.evaluation.suites import table2

TABLE = Table(
    "t", "A & B", "run", ["x_1", "y"], [("100 %", [
        Line("<b>|a*", [Cell(61.2, (60.0, 62.5), 61.9), Cell(5.0, source="server")], "a", "w/o X^r ‡"),
        Line("b", [Cell(text="infeasible"), Cell()], "b"),
    ])], ["so #1"],
)  # fmt: skip


def test_every_form_has_ours_the_papers_and_the_difference():
    text = formats.markdown(TABLE)
    assert "| &lt;b>\\|a\\* | 61.2 | 5.0\\* |" in text and "| *paper: w/o X^r ‡* | *61.9* | - |" in text
    assert "| *difference* | *-0.7* | - |" in text and "| b | infeasible | - |" in text and "- so #1" in text
    assert "A line without the paper's below it" in text
    latex = formats.latex([TABLE])
    assert r"\caption{A \& B}" in latex and r"\textbf{100 \%}" in latex and r"x\_1" in latex
    assert r"w/o X\textasciicircum{}r $\ddagger$" in latex and r"\textit{$-0.7$}" in latex
    page = formats.html(TABLE)
    assert "&lt;b&gt;|a*" in page and 'title="95 % interval 60.0..62.5"' in page
    assert '61.2<i>61.9 <span class="gap">-0.7</span></i>' in page
    rows = list(csv.DictReader(io.StringIO(formats.comma_separated([TABLE]))))
    assert rows[0] == {
        "table": "t", "group": "100 %", "run": "<b>|a*", "arm": "a", "column": "x_1", "ours": "61.2",
        "ci95_low": "60.0", "ci95_high": "62.5", "paper_row": "w/o X^r ‡", "paper": "61.9", "difference": "-0.7",
        "scored_by": "",
    }  # fmt: skip
    assert rows[1]["scored_by"] == "server" and rows[2]["ours"] == "infeasible" and rows[3]["ours"] == ""


@pytest.mark.parametrize("table", tables(Results(table2())), ids=lambda table: table.key)
def test_every_line_has_as_many_cells_as_its_table(table):
    lines = [line for line in formats.markdown(table).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in lines} == {len(table.columns) + 2}
    body = [line for line in formats.latex([table]).splitlines() if line.endswith(r"\\") and "multicolumn" not in line]
    assert {len(re.findall(r"(?<!\\)&", line)) for line in body} == {len(table.columns)}
    rows = list(csv.reader(io.StringIO(formats.comma_separated([table]))))
    assert len(rows) == 1 + len(table.columns) * len(table.lines())
    latex = formats.latex([table])
    assert latex.count("{") - latex.count(r"\{") == latex.count("}") - latex.count(r"\}")
