"""The paper's own figures as counterparts: every row of it is reached by a row of ours, and no other."""

from __future__ import annotations

import pytest

from cropl.errors import UsageError
from cropl.evaluation.paper import Paper, figures, tabled
from tests.evaluation.suites import arm

COUNTS = {
    ("table2", "LLaVA-1.5-7B"): (192, 128, 64), ("table2", "LLaVA-1.5-13B"): (192, 128, 64),
    ("table3", "LLaVA-NeXT-7B"): (640, 320, 160), ("table5", "LLaVA-1.5-7B"): (192, 128, 64),
    ("table6", "LLaVA-1.5-7B"): (64,), ("table7", "Qwen2-VL-7B"): (0.5, 0.4, 1 / 3, 0.222),
    ("table8", "LLaVA-1.5-7B"): (64,), ("table4", "LLaVA-NeXT-13B"): (640, 160),
}  # fmt: skip


def arms(budgets):
    """Every arm that a table's recipe can have at these budgets."""
    made = [arm("dense"), *(arm("plc", tokens_kept_mean=68.0, model=m, model_name=m) for m in ("plc", "plc_no_anchor"))]
    for budget in budgets:
        made += [arm(method, budget) for method in ("fastv", "sparsevlm", "pyramiddrop", "visionzip", "ilp", "prune")]
        made.append(arm("visionzip", budget, model="v", model_name="v"))
        made += [arm("ilp", budget, layer=layer) for layer in (1, 3, 5, 7, 10, 15, 20, 25, 30, 31, 32)]
    return made


@pytest.mark.parametrize(("table", "model"), COUNTS)
def test_every_row_of_the_paper_is_reached_once(table, model):
    counterpart = Paper(model, table)
    assert counterpart.known
    found = [
        (tabled(row), theirs.name)
        for row in arms(COUNTS[table, model])
        if (theirs := counterpart.row(row)) is not None
    ]  # fmt: skip
    assert len(found) == len(set(found)), "two rows of ours against one of the paper's"
    data = figures()[table]
    groups = data["seconds"] if table == "table4" else data["models"][model]
    printed = [name for budget, lines in groups.items() for name in lines]
    if table == "table4":
        printed.remove("LLaVA-NeXT-7B")  # a dense run of another model
    assert sorted(name for _, name in found) == sorted(printed)


def test_figures_are_those_of_the_row():
    paper = Paper("LLaVA-1.5-7B", "table2")
    row = paper.row(arm("ilp", 128))
    assert row is not None and (row.name, row.scores["mme"], row.rel_acc) == ("CROP-ILP", 1771, 97.9)
    plc = paper.row(arm("plc", tokens_kept_mean=68.0, model_name="plc_7b"))
    assert plc is not None and plc.scores["pope"] == 80.2
    half = Paper("Qwen2-VL-7B", "table7").row(arm("ilp", 0.5))
    assert half is not None and half.scores["gqa"] == 61.37
    deep = Paper("LLaVA-1.5-7B", "table8").row(arm("ilp", 64, layer=31))
    assert deep is not None and (deep.name, deep.scores["mme"]) == ("CROP-ILP(K=31)", 1869)
    timed = Paper("LLaVA-NeXT-13B", "table4").row(arm("fastv", 160))
    assert timed is not None and timed.scores["gqa"] == 1973 and timed.rel_acc is None


@pytest.mark.parametrize(
    "row",
    [
        arm("ilp", 64, layer=3), arm("ilp", 64, region_source="gt"), arm("ilp", 100), arm("ilp", 64.0 / 576),
        arm("dense", control="blank_image"), arm("random", 64), arm("sparsevlm+", 64), arm("hybrid", 64),
        arm("plc", tokens_kept_mean=132.0), arm("ilp", None), arm("ilp", 64, positions="compact"),
        arm("ilp", 64, model_name="tuned"), arm("fastv", 64, layer=3), arm("fastv", 64, positions="compact"),
        arm("fastv", 64, model_name="tuned"), arm("pyramiddrop", 64, positions="original"),
        arm("pyramiddrop", 64, options={"layers": [2, 4]}), arm("sparsevlm", 64, options={"recycle": 0.0}),
        arm("visionzip", 64, options={"contextual": 8}), arm("prune", 64, options={"layer": 1}),
        arm("plc", tokens_kept_mean=68.0, model_name="plc", options={"compressor": "plc", "anchor": False}),
    ],
    ids=str,
)  # fmt: skip
def test_what_the_paper_does_not_have_has_no_counterpart(row):
    assert Paper("LLaVA-1.5-7B", "table2").row(row) is None


def test_settings_that_a_method_has_by_itself_are_the_papers():
    """Rows say positions, and a short name's own arguments, also where the recipe does not."""
    table = Paper("LLaVA-1.5-7B", "table2")
    for method, positions in {
        "fastv": "original", "ilp": "original", "sparsevlm": "compact", "pyramiddrop": "compact", "visionzip": "compact"
    }.items():  # fmt: skip
        assert table.row(arm(method, 64, positions=positions)) == table.row(arm(method, 64)) is not None
    plc = arm("plc", tokens_kept_mean=68.0, positions="compact", model_name="plc", options={"compressor": "plc"})
    assert table.row(plc) is not None
    prune = arm("prune", 64, positions="compact", options={"layer": 0, "positions": "compact"})
    assert Paper("LLaVA-1.5-7B", "table5").row(prune) is not None
    deep = Paper("LLaVA-1.5-7B", "table8")
    assert deep.row(arm("ilp", 64, layer=5, positions="original")) is not None
    assert deep.row(arm("ilp", 64, layer=5, positions="compact")) is None


def test_models_without_figures_in_a_table_have_none():
    assert not Paper("Qwen2-VL-7B", "table2").known and Paper("Qwen2-VL-7B", "table2").row(arm("dense")) is None
    nothing = Paper(None, "table9")
    assert not nothing.known and nothing.recall("textvqa") is None
    assert Paper("LLaVA-NeXT-7B", "table4").row(arm("fastv", 160)) is None  # the pruned runs are of 13B
    assert Paper("LLaVA-NeXT-7B", "table4").row(arm("dense")) is not None


def test_relacc_is_as_printed_or_of_the_cells_that_are_shared():
    paper = Paper("LLaVA-1.5-7B", "table2")
    row = paper.row(arm("ilp", 64))
    assert row is not None and paper.relative(row, paper.columns) == 96.0
    five = paper.relative(row, [one for one in paper.columns if one != "vqav2"])
    ratios = (59.6 / 61.9, 1675 / 1862, 54.9 / 58.2, 71.5 / 69.5, 83.6 / 85.9)
    assert five == pytest.approx(20 * sum(ratios)) and paper.relative(row, []) is None
    sparse = Paper("LLaVA-1.5-13B", "table2")
    row = sparse.row(arm("sparsevlm", 64))  # VQAv2 is empty there
    assert row is not None and sparse.relative(row, sparse.columns) == 72.9


def test_sources_and_recall_are_of_textvqa():
    paper = Paper("LLaVA-1.5-13B", "table10")
    assert (
        paper.source("center", arm("ilp"), "textvqa") == 49.78 and paper.source("dense", arm("ilp"), "textvqa") == 55.9
    )
    assert paper.source("center", arm("ilp"), "gqa") is None and paper.source("file", arm("ilp"), "textvqa") is None
    for other in ({"layer": 3}, {"positions": "compact"}, {"model_name": "tuned"}, {"options": {"margin": 1}}):
        assert paper.source("gt", arm("ilp", **other), "textvqa") is None
        assert paper.source("dense", arm("ilp", **other), "textvqa") is None
    recall = Paper("LLaVA-1.5-13B", "table9").recall("textvqa")
    assert recall is not None and recall["above_0.7"] == 2802
    assert Paper("LLaVA-1.5-13B", "table9").recall("gqa") is None


def test_unknown_names_are_errors():
    with pytest.raises(UsageError, match="no figures of a model 'LLaVA-1.5-7b'.*LLaVA-1.5-7B"):
        Paper("LLaVA-1.5-7b", "table2")
    with pytest.raises(UsageError, match="no 'table1'"):
        Paper(None, "table1")
