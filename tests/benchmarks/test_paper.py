"""The paper's own figures: complete, and their averages follow from their other cells."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

import pytest
import yaml

from cropl.metrics.relative import relative_accuracy

PAPER: dict[str, Any] = yaml.safe_load(files("cropl.benchmarks").joinpath("paper.yaml").read_text(encoding="utf-8"))
AVERAGED = ["table2", "table3", "table5", "table6", "table7", "table8"]
ROWS = [
    (table, model, budget, method)
    for table in AVERAGED
    for model, budgets in PAPER[table]["models"].items()
    for budget, rows in budgets.items()
    for method in rows
]


def scores(table: str, model: str, budget: Any, method: str) -> dict[str, float | None]:
    columns, row = PAPER[table]["columns"], PAPER[table]["models"][model][budget][method]
    assert len(row) == len(columns) + 1
    return dict(zip(columns, row, strict=False))


def test_no_row_is_missing() -> None:
    counts = {table: sum(one[0] == table for one in ROWS) for table in AVERAGED}
    assert counts == {"table2": 40, "table3": 16, "table5": 7, "table6": 3, "table7": 9, "table8": 14}
    dense = sum(budget == "dense" for _, _, budget, _ in ROWS)
    assert len(ROWS) - dense == 82


@pytest.mark.parametrize(("table", "model", "budget", "method"), ROWS)
def test_averages_follow_from_the_other_cells(table, model, budget, method) -> None:
    [name] = PAPER[table]["models"][model]["dense"]
    found = relative_accuracy(scores(table, model, budget, method), scores(table, model, "dense", name))
    assert found == pytest.approx(PAPER[table]["models"][model][budget][method][-1], abs=0.055)
