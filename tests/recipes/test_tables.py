"""Every table of the paper has its recipe, and every arm of it a counterpart among the paper's own figures."""

from __future__ import annotations

import re

import pytest

from cropl import recipe
from cropl.evaluation.arms import ALL
from cropl.evaluation.paper import Paper
from cropl.evaluation.suite import TABLES, Suite

SHIPPED = [name for name in recipe.names() if recipe.load([name]).get("benchmarks")]
TABLED = [name for name in SHIPPED if name.startswith("evaluate/")]


def test_every_table_has_its_recipe() -> None:
    assert {name.rpartition("/")[2] for name in TABLED} == {*TABLES, "table2_13b"}


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_suite_is_right(name) -> None:
    made = Suite.from_config(recipe.load([name]))
    assert made.studies and recipe.describe(name)
    for study in made.studies:
        assert recipe.load_object(study.data["class_path"])


@pytest.mark.parametrize("name", TABLED)
def test_every_arm_of_a_table_has_its_counterpart_in_the_paper(name) -> None:
    """Of Table 9 that is the recall, whatever is answered."""
    made = Suite.from_config(recipe.load([name]))
    table = re.sub("_13b$", "", name.rpartition("/")[2])
    assert made.tables == (table,) and made.paper is not None
    paper = Paper(made.paper, table)
    assert paper.known
    if table == "table9":
        assert all(paper.recall(study.benchmark) for study in made.studies)
        return
    for study in made.studies:
        for arm in study.arms:
            layer, kept = 32 if arm.layer == ALL else arm.layer, 68.0 if arm.method == "plc" else None
            shown = {
                "method": arm.method, "region_source": arm.region_source, "control": arm.control, "budget": arm.budget,
                "layer": layer, "model": arm.model or study.model, "model_name": arm.model_name,
                "tokens_kept_mean": kept, "positions": arm.positions, "options": dict(arm.options),
            }  # fmt: skip
            if table == "table10":
                sources = ["dense", arm.region_source] if arm.method != "dense" else []  # of one run like the others
                assert None not in [paper.source(source, shown, study.benchmark) for source in sources], arm.key
            else:
                assert paper.row(shown) is not None, arm.key
                assert study.benchmark in paper.columns
