"""The page of a suite: what stands in it besides tables and plots."""

from __future__ import annotations

import re
from html import escape

import pytest

from cropl.evaluation.reporting.page import HOLLOW, write
from cropl.metrics.relative import relative_accuracy
from tests.evaluation.suites import DENSE, arm, stored, suite


def page(results, folder):
    write(results, stored(folder / "run", results), "name", folder / "out")
    return (folder / "out/name.html").read_text()


@pytest.mark.parametrize(("budget", "told"), [(64, True), (100, False)])
def test_hollow_markers_are_told_where_there_are_any(tmp_path, budget, told):
    text = page(suite([arm("dense"), arm("ilp", budget)], ("gqa",)), tmp_path)
    assert (escape(HOLLOW).replace("&#x27;", "&#39;") in text) == ("ollow markers" in text) == told


def test_the_figure_at_the_top_is_that_of_the_first_table(tmp_path):
    """RelAcc over the columns of Table 5, which has no VQAv2, and not over all benchmarks of the suite."""
    results = suite([arm("dense"), arm("ilp", 64), arm("prune", 64)], unscored=(), tables=["table5"])
    ilp = results["suite"][1]
    ilp["scores"]["vqav2"] = 20.0
    ilp["rel_acc"] = relative_accuracy(ilp["scores"], DENSE)
    five = relative_accuracy({one: ilp["scores"][one] for one in DENSE if one != "vqav2"}, DENSE)
    [shown] = re.findall(r"<b>([0-9.]+) %</b><span>RelAcc of ILP", page(results, tmp_path))
    assert float(shown) == pytest.approx(five, abs=0.06) and five > ilp["rel_acc"] + 5


def test_without_a_table_that_has_it_it_is_the_suites(tmp_path):
    results = suite([arm("dense"), arm("ilp", 64)], ("textvqa",), tables=["table9"])
    results["suite"][1]["rel_acc"] = 12.3
    assert "<b>12.3 %</b><span>RelAcc of ILP" in page(results, tmp_path)
