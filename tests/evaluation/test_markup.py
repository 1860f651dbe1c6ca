"""Text of others in Markdown pages: a reader sees it as it is, in one cell."""

from __future__ import annotations

import re
from html import unescape

import pytest
from markdown_it import MarkdownIt  # which rich needs

from cropl.evaluation.markup import cell, code
from cropl.evaluation.reporting.formats import markdown
from cropl.evaluation.reporting.page import markdown as page
from cropl.evaluation.reporting.results import Results
from cropl.evaluation.reporting.table import Cell, Line, Table
from cropl.evaluation.shapes import comparisons
from cropl.evaluation.shapes import page as study_page
from tests.evaluation.suites import arm, suite
from tests.evaluation.test_shapes import ROWS

NASTY = [
    "a|b", "\\|", "a\\", "**bold**", "*i*", "<script>alert(1)</script>", "<b>", "[x](javascript:y)", "![x](y)", "_it_",
    "__b__", "`code`", "`", "a`|`b", "~~gone~~", "no_anchor", "testbed/study_full", "a\nb", "a\r\nb", "a_ _b", "| - |",
]  # fmt: skip


def cells(text: str) -> list[list[str]]:
    """The rows of tables as a reader of the page sees them."""
    rendered = MarkdownIt().enable("table").enable("strikethrough").render(text)
    rows = re.findall(r"<tr>(.*?)</tr>", rendered, re.DOTALL)
    return [[unescape(one) for one in re.findall(r"<t[hd][^>]*>(.*?)</t[hd]>", row, re.DOTALL)] for row in rows]


@pytest.mark.parametrize("text", NASTY)
def test_what_is_written_is_what_is_read(text: str) -> None:
    seen = re.sub(r"\s+", " ", text)
    rows = cells(f"| a | b |\n| --- | --- |\n| {cell(text)} | {cell(text)} |\n")
    assert [re.sub(r"\s+", " ", one) for one in rows[1]] == [seen, seen]


def test_names_of_files_and_arms_stay_as_they_are() -> None:
    plain = "testbed/study_full, PLC (no_anchor), K = 2, 95 % 1.0..2.0, w/o X^r ‡, 2.13.0+cpu; a-b_c.d"
    assert cell(plain) == plain and code("cropl `x`\ny") == "`cropl 'x' y`"


@pytest.mark.parametrize("text", NASTY)
def test_no_page_lets_a_name_out_of_its_cell(text: str) -> None:
    seen = re.sub(r"\s+", " ", text)
    pair = {"a": text, "b": text, "budget": 64, "difference": 0.1, "ci95": [0.0, 0.2]}
    assert [re.sub(r"\s+", " ", row[0]) for row in cells(comparisons([pair], text).markdown())[2:]] == [
        f"{seen} - {seen}"
    ]
    table = Table("t", text, text, [text], [(text, [Line(text, [Cell(1.0, paper=2.0)], paper=text)])], [text])
    rows = cells(markdown(table))
    assert {len(row) for row in rows} == {2} and len(rows) == 5
    assert [re.sub(r"\s+", " ", row[0]) for row in (rows[0], rows[2])] == [seen, seen]


def test_facts_of_a_run_are_text() -> None:
    evil = "<script>|*x*\n# y"
    rows = [{**row, "model": evil, "hardware": evil, "recipe": f"`{evil}`", "commit": evil} for row in ROWS]
    results = suite([arm("dense", model=evil), arm("ilp", 64, model=evil)], ("gqa",))
    results["recipe"] = evil
    results["rows"] = [{**row, "hardware": evil, "commit": evil} for row in results["rows"]]
    for text in (study_page({"rows": rows}, "study_full"), page(Results(results), [], "name", [])):
        rendered = MarkdownIt().enable("table").render(text)
        assert "<script>" not in rendered and "<em>x" not in rendered and rendered.count("<h1>") == 1
        assert "&lt;script&gt;|" in rendered
