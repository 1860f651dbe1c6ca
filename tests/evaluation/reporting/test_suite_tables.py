"""The tables of a suite: which rows stand where, with which of the paper's figures beside them."""

from __future__ import annotations

import pytest

from cropl import recipe
from cropl.evaluation.reporting.results import Results
from cropl.evaluation.reporting.suite_tables import missing, tables
from cropl.evaluation.suite import Suite
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
    assert {cell.difference for cell in group[0].cells} == {None}  # of 100 questions here, of 3,000 there
    assert any("ours are 100 others" in note for note in sources.notes)
    assert "VQAv2" not in dict(sources.groups)


@pytest.mark.parametrize("key", ["table9", "table10"])
def test_visual_cots_questions_stand_beside_those_that_the_paper_marked(key):
    """The recipes' own names and arms: their benchmark is not called `textvqa`."""
    asked = Suite.from_config(recipe.load([f"evaluate/llava_1_5_7b/{key}"]))
    [study] = asked.studies
    assert study.benchmark == "viscot_textvqa"
    knobs = ("budget", "region_source", "layer", "positions", "model_name")
    arms = [arm(one.method, **{knob: getattr(one, knob) for knob in knobs}) for one in study.arms]
    results = suite(arms, ("viscot_textvqa",), asked.paper, asked.tables, ())
    results["localizer"] = {"viscot_textvqa": {**suite(arms)["localizer"]["gqa"], "n": 526}}
    results["rows"] = [{**row, "n": 526} for row in results["rows"]]
    table = made(results)[key]
    theirs = {"table9": "TextVQA", "table10": "CROP-ILP"}[key]
    assert {one.paper for one in table.lines()} == {theirs} and table.compared
    for one in table.lines():
        cells = dict(zip(table.columns, one.cells, strict=True))
        assert all(cell.paper is not None for cell in one.cells)
        assert [head for head, cell in cells.items() if cell.difference is not None] == (["mean"] * (key == "table9"))
    assert any("3,000 questions of TextVQA" in note and "ours are 526 of Visual-CoT" in note for note in table.notes)
    whole = {
        **results,
        "benchmarks": ["textvqa"],
        "rows": [{**r, "n": 3000, "benchmark": "textvqa"} for r in results["rows"]],
    }
    whole["localizer"] = {"textvqa": {**results["localizer"]["viscot_textvqa"], "n": 3000}}
    whole["suite"] = [
        {**row, **{name: {"textvqa": row[name]["viscot_textvqa"]} for name in ("scores", "scores_ci95", "seconds")}}
        for row in results["suite"]
    ]
    same = made(whole)[key]
    assert not any("Visual-CoT" in note or "others" in note for note in same.notes)
    assert sum(cell.difference is not None for one in same.lines() for cell in one.cells) >= 4


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
        if row["arm"] == other["arm"]:  # dense and ILP; their RelAcc is over the benchmarks with FastV
            row["scores"] = {**row["scores"], "scenes": 80.0 if row["method"] == "dense" else 40.0}
    both["suite"] += scenes["suite"][2:]
    found, ilp = made(both), both["suite"][1]
    assert found["table2"].columns == ["GQA", "MME", "RelAcc", "kept"]  # FastV was not asked about the scenes
    cells, _ = line(found["table2"], "ILP, predicted regions")
    ours = relative_accuracy({one: ilp["scores"][one] for one in ("gqa", "mme")}, DENSE)
    assert cells["RelAcc"].ours == pytest.approx(ours) and cells["RelAcc"].ci95 == ilp["rel_acc_ci95"]
    assert [label for label, _ in found["table10"].groups] == ["scenes"]
    both["suite"] = [row for row in both["suite"] if row["method"] != "fastv"]
    table = made(both)["table2"]  # without FastV all benchmarks have all rows: RelAcc is of three, the suite's of two
    cells, _ = line(table, "ILP, predicted regions")
    three = relative_accuracy(ilp["scores"], {**DENSE, "scenes": 80.0})
    assert table.columns[:3] == ["GQA", "MME", "scenes"] and three < ilp["rel_acc"] - 10
    assert cells["RelAcc"].ours == pytest.approx(three) and cells["RelAcc"].ci95 is None


def test_each_budget_has_the_papers_k_where_it_was_run():
    """One run at K = 2 hides no others at budgets where it was not run."""
    arms = [arm("dense"), arm("ilp", 192, layer=2), *(arm("ilp", 128, layer=k) for k in (2, 3))]
    arms += [arm("ilp", 64, layer=k) for k in (3, 5)]
    table = made(suite(arms))["table2"]
    assert [[one.label.split(", ")[1] for one in group] for _, group in table.groups[1:]] == [
        ["K = 2"], ["K = 2"], ["K = 3"]
    ]  # fmt: skip
    alone = made(suite(arms, paper=None))["table2"]  # without the paper: K at most budgets, else what there is
    assert [one.label.split(", ")[1] for one in alone.lines()[1:]] == ["K = 2", "K = 2", "K = 3"]
