"""Plots of a suite: whole SVG, with a line per method and panels for what was scored."""

from __future__ import annotations

import xml.etree.ElementTree as ET

from cropl.evaluation.reporting.figures import figures, histogram
from cropl.evaluation.reporting.results import Results
from tests.evaluation.suites import FIVE, arm, suite


def texts(plot):
    return [(part.text or "").strip() for part in ET.fromstring(plot.svg).iter() if part.tag.endswith("text")]


def test_plots_of_a_suite():
    layers = [arm("ilp", 64, layer=layer) for layer in (1, 5, 32)]
    arms = [arm("dense"), arm("ilp", 64), arm("ilp", 192), arm("fastv", 64), *layers, arm("ilp", None, arm="own")]
    arms += [arm("fastv", 128, infeasible="no"), arm("random", 64, seeds=[0, 1]), arm("plc", model_name="<&$")]
    found = figures(Results(suite(arms)), {"gqa": [0.0, 0.5, 1.0], "mme": []})
    assert list(found) == ["scores", "rel_acc", "layers", "recall"]
    told = texts(found["scores"])
    assert {"GQA, %", "MME, points", "ILP, K = 2, predicted regions", "FastV", "random tokens"} <= set(told)
    assert "VQAv2, %" not in told and "ILP, K = 5, predicted regions" not in told  # not scored; in the sweep alone
    assert "PLC (<&$), predicted regions" in told and "the paper's" in told
    assert "Pareto front" in texts(found["rel_acc"]) and {"RelAcc, %", "ILP, 64 tokens"} <= set(texts(found["layers"]))
    assert "GQA, 3 questions, mean 0.500" in texts(found["recall"])


def test_what_the_rows_do_not_fill_is_not_drawn():
    assert figures(Results(suite([arm("dense")])), {}) == {}
    alone = figures(Results(suite([arm("dense"), arm("ilp", 64)], FIVE, None, unscored=FIVE)), {})
    assert alone == {}
    assert "the paper's" not in texts(figures(Results(suite([arm("dense"), arm("ilp", 64)], FIVE, None)), {})["scores"])


def hollow(*arms, **changes):
    found = figures(Results(suite([arm("dense"), *arms], ("gqa",), **changes)), {})
    for plot in found.values():
        assert plot.hollow == ("the paper's" in texts(plot))
    return {name: plot.hollow for name, plot in found.items()}


def test_hollow_markers_are_told_only_where_there_are_any():
    assert hollow(arm("ilp", 64)) == {"scores": True, "rel_acc": True}
    assert hollow(arm("ilp", 100), arm("random", 64)) == {"scores": False, "rel_acc": False}
    sweep = [arm("ilp", 100, layer=layer) for layer in (1, 2)]  # the paper has it at 64 tokens
    assert not any(hollow(*sweep).values()) and hollow(*sweep, tables=["table8"])["layers"] is False


def test_the_papers_figures_are_of_the_table_that_the_suite_names():
    """`prune` and PLC without anchors are in Tables 5 and 6 alone."""
    assert hollow(arm("prune", 64)) == {"scores": False, "rel_acc": False}
    assert hollow(arm("prune", 64), tables=["table5"]) == {"scores": True, "rel_acc": True}
    bare = arm("plc", model_name="no_anchor", tokens_kept_mean=68.0)
    assert not any(hollow(bare).values()) and all(hollow(bare, tables=["table9", "table6"]).values())
    assert not any(hollow(arm("ilp", 192), tables=["table8"]).values()) and all(hollow(arm("ilp", 192)).values())


def test_bins_have_their_lower_end():
    assert histogram([0.0, 0.09, 0.1, 0.3, 0.7, 0.9, 1.0]) == [2, 1, 0, 1, 0, 0, 0, 1, 0, 2]
