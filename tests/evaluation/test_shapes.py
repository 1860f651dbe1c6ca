"""Rows in the shapes of the paper's tables: which rows go where, in what order, with which RelAcc."""

from __future__ import annotations

import xml.etree.ElementTree as ET

import pytest

from cropl.evaluation import report
from cropl.evaluation.plot import Series, accuracy_plot, pareto
from cropl.evaluation.shapes import by_layer, by_method, by_source, by_strategy, page, shapes


def row(method="ilp", source="predicted", budget=64, accuracy=0.8, layer=1, **changes):
    kinds = {} if accuracy is None else {"count": accuracy - 0.1, "text": accuracy + 0.1}
    made = {
        "arm": f"{method}-{source}-{budget}-{layer}", "method": method, "region_source": source, "control": None,
        "layer": layer, "num_layers": 6, "budget": budget, "budget_meaning": "post_prune", "model": "m",
        "benchmark": "b", "n": 10, "seed": 0, "infeasible": None, "accuracy": accuracy, "rel_acc": 95.0,
        "accuracy_ci95": list(kinds.values()), "tokens_kept_mean": float(budget or 576),
        "layer_average_tokens": 149.3, "prefill_flops": 1e9 * (budget or 576), "kv_bytes": 1e6,
        "prefill_flops_with_localizer": 2e9 * (budget or 576),
        "seconds": 2.0, "images": 5, "encode_seconds": 1.0, "localizer_seconds": 3.0,
        "recipe": "testbed/study", "commit": "c0ffee", "versions": {"torch": "2.13.0"},
        "accuracy_by_kind": {kind: {"accuracy": value, "n": 5} for kind, value in kinds.items()},
    }  # fmt: skip
    return {**made, **changes}


DENSE = row("dense", "none", None, 0.9, None)
ROWS = [
    DENSE,
    row("dense", "none", None, 0.2, None, control="blank_image"),
    row(accuracy=0.85, rel_acc=93.68), row(budget=128, accuracy=0.88), row(layer=3, accuracy=0.87),
    row(layer=0, accuracy=0.83), row(layer=6, accuracy=0.9),
    row(source="gt", accuracy=0.86), row(source="center", accuracy=0.5), row(source="random", accuracy=0.4),
    row("prune", accuracy=0.6, layer=0), row("fastv", "none", accuracy=0.7, layer=2),
    row("pyramiddrop", "none", layer=None, budget_meaning="layer_average", infeasible="never", accuracy=None),
    row("plc", budget=None, accuracy=0.84, layer=None, tokens_kept_mean=68.0),
]  # fmt: skip


def cells(shape):
    return {label: [line[0] for line in lines] for label, lines in shape.groups}


def test_methods_stand_by_budget_with_predicted_regions():
    shape = by_method(ROWS)
    assert shape.heads == ["method", "count", "text", "all", "RelAcc", "kept", "per layer"]
    assert cells(shape) == {
        "upper bound, 576 tokens": ["dense"],
        "on average 128 tokens": ["ILP, K = 1, predicted regions"],
        "on average 64 tokens": ["ILP, K = 1, predicted regions", "prune, predicted regions", "FastV"],
        "on average 64 tokens per layer": ["PyramidDrop"],
        "no budget": ["PLC, predicted regions"],
    }
    ilp = shape.groups[2][1][0]
    assert ilp[1:] == ["75.0", "95.0", "85.0", "93.7", "64.0", "149"]  # RelAcc as the row has it
    assert "over benchmarks" in shape.caption and shape.caption in shape.markdown() and by_source(ROWS).caption == ""
    assert shape.groups[3][1][0][3:] == ["infeasible", "-", "-", "-"]


def test_layers_sources_and_strategies_have_their_shapes():
    assert cells(by_layer(ROWS))["on average 64 tokens"] == [
        "ILP (K = 6)",
        "ILP (K = 3)",
        "ILP (K = 1)",
        "ILP (K = 0)",
        "prune",
    ]
    assert "on average 128 tokens" not in cells(by_layer(ROWS))
    source = by_source(ROWS)
    assert source.heads == ["budget", "dense", "GT", "Pred", "Center", "Random"]
    assert source.groups[1] == ("ILP, K = 1", [["64", "90.0", "86.0", "85.0", "50.0", "40.0"]])
    assert cells(by_strategy(ROWS)) == {
        "upper bound, 576 tokens": ["dense"],
        "on average 64 tokens": ["prune, predicted regions", "ILP, K = 1, predicted regions"],
    }


def test_variants_of_one_source_each_have_their_line():
    both = [
        row(source=source, accuracy=accuracy + shift, positions=positions, arm=f"{source}-{positions}")
        for source, accuracy in (("gt", 0.8), ("random", 0.4))
        for positions, shift in (("original", 0.0), ("compact", -0.1))
    ]
    assert by_source([DENSE, *both]).groups[1:] == [
        ("ILP, K = 1, compact positions", [["64", "90.0", "70.0", "30.0"]]),
        ("ILP, K = 1, original positions", [["64", "90.0", "80.0", "40.0"]]),
    ]
    sweep = [row(layer=k, positions=p, arm=f"{k}{p}") for k in (1, 3) for p in ("original", "compact")]
    assert cells(by_layer([DENSE, *sweep]))["on average 64 tokens"] == [
        "ILP (K = 3), original positions", "ILP (K = 3), compact positions",
        "ILP (K = 1), original positions", "ILP (K = 1), compact positions",
    ]  # fmt: skip


def test_shapes_that_rows_do_not_fill_are_left_out():
    assert [shape.title.split(" (")[0] for shape in shapes([DENSE, row()])] == ["Methods by budget"]
    assert len(shapes(ROWS)) == 4 and shapes([DENSE]) == []


def test_a_page_tells_how_it_was_made_and_every_line_has_as_many_cells():
    results = {"rows": ROWS, "comparisons": [{"a": "x", "b": "y", "budget": None, "difference": 0.2, "ci95": [0.1, 1]}]}
    text = page(results, "study", ["tokens"])
    assert "`cropl evaluate -c testbed/study`" in text and "commit c0ffee" in text and "(study_tokens.svg)" in text
    assert "| x - y |  | +20.0 | +10.0..+100.0 |" in text
    for table in text.split("### ")[1:]:
        lines = [line for line in table.splitlines() if line.startswith("|")]
        assert len({line.count("|") for line in lines}) == 1


def test_the_pareto_front_holds_what_nothing_cheaper_reaches():
    points = [(64, 0.8, 0, 1), (64, 0.7, 0, 1), (128, 0.75, 0, 1), (192, 0.9, 0, 1), (576, 0.9, 0, 1)]
    assert pareto(points) == [(64, 0.8), (192, 0.9)]


def test_the_pareto_front_goes_through_the_markers_of_its_points():
    """Markers are moved sideways where lines are many, and the front with them."""
    points = {name: [(100.0, 0.9, 0.8, 1.0), (10.0, low, 0.4, 0.6)] for name, low in (("a", 0.4), ("b", 0.5))}
    svg = ET.fromstring(accuracy_plot([Series(*one) for one in points.items()], frontier=True))
    front, *lines = (
        [tuple(p.split(",")) for p in part.get("points").split()] for part in svg if "polyline" in part.tag
    )
    assert front[0] == lines[1][0] != lines[0][0] and len(front) == 2 and len(lines) == 2
    assert front[1] in (lines[0][1], lines[1][1])


@pytest.mark.parametrize("against", report.AXES)
def test_accuracy_is_drawn_against_every_cost(against):
    svg = report.plot(ROWS, against, frontier=True)
    ET.fromstring(svg)
    label = {"tokens": "visual tokens", "flops": "prefill FLOPs", "seconds": "milliseconds"}[against.split()[-1]]
    assert label in svg and ">Pareto front</text>" in svg
    assert "Pareto" not in report.plot(ROWS, against)
    assert ("vision tower and localizer" in svg) == against.startswith("total")


def test_total_time_holds_the_tower_and_where_regions_were_predicted_the_localizer():
    row = {"n": 10, "seconds": 2.0, "images": 5, "encode_seconds": 1.0, "localizer_seconds": 3.0}
    total, _ = report.AXES["total seconds"]
    assert total({**row, "region_source": "gt"}) == pytest.approx(400)
    for source in ("predicted", "center", "random"):  # random regions have the size of predicted ones
        assert total({**row, "region_source": source}) == pytest.approx(700)
        assert total({**row, "region_source": source, "localizer_seconds": None}) is None
    assert total({**row, "region_source": "zero_shot"}) is None
    assert total({**row, "region_source": "gt", "encode_seconds": None}) is None


def test_no_two_of_many_lines_look_alike():
    looks = [_look(f"line {index}", index) for index in range(16)]
    assert len(set(looks)) == 16


def _look(name: str, index: int) -> tuple[str, ...]:
    """Colour and marker of the line that stands at this place."""
    others = [Series(f"other {i}", [(64.0, 0.5, 0.4, 0.6)]) for i in range(index)]
    svg = ET.fromstring(accuracy_plot([*others, Series(name, [(100.0, 0.9, 0.8, 1.0)])]))
    markers = [
        (part.tag.split("}")[-1], part.get("fill"), str(len((part.get("points") or "").split())))
        for part in svg
        if part.get("stroke") == "#fff"
    ]
    return markers[index]
