"""The tables of a suite: which rows stand where, with which of the paper's figures beside them."""

from __future__ import annotations

import pytest

from cropl.evaluation.reporting.results import Results
from cropl.evaluation.reporting.suite_tables import missing, tables
from cropl.metrics.relative import relative_accuracy
from tests.evaluation.suites import DENSE, FIVE, arm, suite, table2


def made(results):
    return {table.key: table for table in tables(Results(results))}


def line(table, label, budget=""):
    [found] = [one for group, lines in table.groups if budget in group for one in lines if one.label == label]
    return dict(zip(table.columns, found.cells, strict=True)), found


ILP = "ILP, K = 2, predicted regions"


def test_every_shape_that_the_rows_fill_is_made_with_the_papers_figures():
    found = made(table2())
    assert list(found) == ["table2", "table4", "table5", "table6", "table8", "table9", "table10", "controls"]
    assert found["table2"].title == "Table 2: CROP on LLaVA-1.5 against other methods"
    assert found["table2"].columns == ["GQA", "MME", "TextVQA", "SQA", "VQAv2", "POPE", "RelAcc", "kept"]
    assert [label for label, _ in found["table2"].groups] == [
        "upper bound, 576 tokens", *(f"on average {budget} tokens" for budget in (192, 128, 64))
    ]  # fmt: skip
    cells, ilp = line(found["table2"], ILP, "128")
    assert ilp.paper == "CROP-ILP" and (cells["GQA"].paper, cells["MME"].paper) == (60.8, 1771)
    assert cells["GQA"].difference == pytest.approx(cells["GQA"].ours - 60.8)
    assert cells["MME"].mine() == f"{cells['MME'].ours:.0f}" and cells["GQA"].ci95 is not None
    assert any("tabled as 64" in note for note in found["table2"].notes)


def test_plc_stands_under_the_papers_budget_and_says_what_it_keeps():
    table = made(table2())["table2"]
    cells, plc = line(table, "PLC (plc_7b), predicted regions", "64")
    assert plc.paper == "CROP-PLC" and cells["kept"].mine() == "68.0"
    anchors = made(table2())["table6"]
    assert [one.paper for one in anchors.lines()] == ["LLaVA-1.5", "CROP-PLC", "w/o X^r"]


def test_cells_that_nobody_scored_are_empty_and_relacc_is_of_the_same_benchmarks_on_both_sides():
    table = made(table2())["table2"]
    cells, _ = line(table, ILP, "64")
    assert (cells["VQAv2"].ours, cells["VQAv2"].paper, cells["VQAv2"].gap()) == (None, 74.8, "-")
    five = {"gqa": 59.6, "mme": 1675, "textvqa": 54.9, "scienceqa": 71.5, "pope": 83.6}
    dense = {"gqa": 61.9, "mme": 1862, "textvqa": 58.2, "scienceqa": 69.5, "pope": 85.9}
    assert cells["RelAcc"].paper == pytest.approx(relative_accuracy(five, dense)) != 96.0
    assert any("may not be as printed" in note for note in table.notes)
    scored = made(suite([arm("dense"), arm("ilp", 64)], unscored=()))["table2"]
    assert line(scored, "ILP, predicted regions")[0]["RelAcc"].paper == 96.0
    assert not any("may not be as printed" in note for note in scored.notes)


def test_relacc_of_ours_is_the_suites_or_of_the_tables_columns():
    results = suite([arm("dense"), arm("ilp", 64), arm("prune", 64)], unscored=())
    found, ilp = made(results), results["suite"][1]
    assert line(found["table2"], "ILP, predicted regions")[0]["RelAcc"].ours == ilp["rel_acc"]
    cells, _ = line(found["table5"], "ILP, predicted regions")  # Table 5 has no VQAv2
    ours = relative_accuracy({one: ilp["scores"][one] for one in FIVE}, DENSE)
    assert cells["RelAcc"].ours == pytest.approx(ours) and cells["RelAcc"].ci95 is None
    assert "VQAv2" not in found["table5"].columns and cells["RelAcc"].paper == 96.2


def test_infeasible_runs_say_so_and_keep_the_papers_figures():
    cells, row = line(made(table2())["table2"], "PyramidDrop", "64")
    assert row.paper == "PDrop" and cells["RelAcc"].mine() == "infeasible" and cells["GQA"].theirs() == "47.5"
    assert cells["GQA"].gap() == "-" and cells["kept"].mine() == "-"


def test_the_sweep_has_each_k_and_two_digits():
    table = made(table2())["table8"]
    labels = [one.label for one in table.lines()]
    assert labels == ["dense", *(f"ILP (K = {layer})" for layer in (32, 20, 10, 5, 2, 1)), "prune"]
    cells, row = line(table, "ILP (K = 20)")
    assert (row.paper, cells["GQA"].theirs()) == ("CROP-ILP(K=20)", "61.63")


def test_shares_of_tokens_have_the_papers_rows():
    arms = [arm("dense"), *(arm(method, share) for share in (0.5, 0.4, 0.333, 0.222) for method in ("fastv", "ilp"))]
    table = made(suite(arms, FIVE, "Qwen2-VL-7B", ["table7"]))["table7"]
    assert [label for label, _ in table.groups][1] == "on average 50 % of an image's tokens"
    assert [one.paper for one in table.lines()] == ["Qwen2-VL", *["FastV", "CROP-ILP"] * 4]
    assert line(table, "ILP, predicted regions", "22.2")[0]["MME"].paper == 2013


def test_seconds_recall_and_sources():
    arms = [arm("dense"), *(arm(method, budget) for budget in (640, 160) for method in ("fastv", "ilp"))]
    timed = suite(arms, ("gqa", "textvqa"), "LLaVA-NeXT-13B", ["table4"], (), 2880)
    cells, row = line(made(timed)["table4"], "FastV", "640")
    assert row.paper == "FastV" and cells["GQA"].paper == 2857
    assert cells["% of dense"].paper == pytest.approx(50 * (2857 / 5394 + 1401 / 2497))
    recall = made(table2())["table9"]
    cells, row = line(recall, "TextVQA")
    assert [cells[head].mine() for head in recall.columns[:3]] == ["200", "0.9100", "190 (95.0 %)"]
    assert cells["mean"].difference == pytest.approx(0.91 - 0.9477) and cells["above 0.5"].difference is None
    assert line(recall, "GQA")[1].paper is None
    sources = made(table2())["table10"]
    group = dict(sources.groups)["TextVQA"]
    assert [cell.paper for cell in group[0].cells] == [52.32, 53.2, 53.14, 47.35, 45.76]
    assert "VQAv2" not in dict(sources.groups)


def test_without_a_paper_the_same_shapes_stand_alone():
    results = {**table2(), "paper": None}
    found = made(results)
    assert list(found) == list(made(table2()))
    assert not any(table.compared for table in found.values())
    assert found["table2"].title == "Methods by budget (the shape of the paper's Table 2)"
    assert found["table5"].columns[:6] == ["GQA", "MME", "TextVQA", "SQA", "VQAv2", "POPE"]


def test_tables_that_are_named_are_made_and_those_that_cannot_be_are_told():
    results = suite([arm("dense"), arm("ilp", 64)], tables=["table8", "table2"])
    assert list(made(results)) == ["table2"] and missing(Results(results)) == ["table8"]
    assert list(made(suite([arm("dense")], ("gqa",), None))) == ["table9"]


def test_budgets_per_layer_stand_apart():
    both = [arm("fastv", 64), arm("fastv", 64, budget_meaning="layer_average", arm="other")]
    found = made(suite([arm("dense"), *both]))["table2"]
    assert [label for label, _ in found.groups][1:] == ["on average 64 tokens", "on average 64 tokens per layer"]


def test_a_benchmark_with_arms_of_its_own_does_not_mix_into_the_others():
    both = suite([arm("dense"), arm("ilp", 64), arm("fastv", 64)], ("gqa", "mme"), None)
    own = [arm("dense"), arm("ilp", 64), *(arm("ilp", 64, region_source=source) for source in ("gt", "random"))]
    scenes = suite(own, ("scenes",), None)
    both["rows"] += scenes["rows"]
    both["benchmarks"].append("scenes")
    for row, other in zip(both["suite"], scenes["suite"], strict=False):
        if row["arm"] == other["arm"]:  # dense and ILP
            row["scores"] = {**row["scores"], "scenes": 80.0 if row["method"] == "dense" else 40.0}
            row["rel_acc"] = relative_accuracy(row["scores"], {**DENSE, "scenes": 80.0})
    both["suite"] += scenes["suite"][2:]
    found = made(both)
    assert found["table2"].columns == ["GQA", "MME", "RelAcc", "kept"]  # FastV was not asked about the scenes
    cells, _ = line(found["table2"], "ILP, predicted regions")
    ours = relative_accuracy({one: both["suite"][1]["scores"][one] for one in ("gqa", "mme")}, DENSE)
    assert cells["RelAcc"].ours == pytest.approx(ours) != both["suite"][1]["rel_acc"]
    assert [label for label, _ in found["table10"].groups] == ["scenes"]
