"""`cropl evaluate`, `ls`, `show` and `cp` through the command line."""

from __future__ import annotations

import json
import re

import pytest

from cropl import recipe
from cropl.cli import main
from cropl.evaluation.arms import ALL
from cropl.evaluation.study import Study

RECIPE = """
vars: {{budgets: [16]}}
model: {model}
localizer: {localizer}
benchmark: testbed
data: {{class_path: cropl.testbed.samples.samples, init_args: {{split: test, count: 4}}}}
arms:
  - {{method: ilp, region_source: predicted, layer: 1, budget: "${{vars.budgets}}"}}
max_new_tokens: 1
bootstrap: 20
"""


@pytest.fixture
def small(tmp_path, tiny_llava, tiny_localizer):
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE.format(model=tiny_llava, localizer=tiny_localizer))
    return str(path)


def test_evaluate_writes_and_tells(small, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["evaluate", "-c", small, "--out", str(out), "--limit", "2", "--vars.budgets", "[16, 8]"]) == 0
    told = capsys.readouterr()
    assert f"report: {out / 'report.html'}" in told.out and "ILP, predicted regions" in told.out
    results = json.loads((out / "results.json").read_text())
    assert [row["budget"] for row in results["rows"]] == [None, 16, 8]
    assert results["rows"][0]["n"] == 2 and results["rows"][0]["recipe"] == "small.yaml"
    assert len((out / "predictions.jsonl").read_text().splitlines()) == 2


def test_default_folder_is_named_after_the_recipe(small, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate", "-c", small, "--limit", "1"]) == 0
    assert (tmp_path / "runs/small/report.html").exists()


@pytest.mark.parametrize(("name", "seeds"), [("testbed/study", 5), ("testbed/quickstart", 3)])
def test_shipped_studies_are_valid(name, seeds):
    study = Study.from_config(recipe.load([name]))
    keys = [arm.key for arm in study.arms]
    assert keys[0] == "dense"
    for source in ("gt", "predicted", "center", "random"):
        assert f"ilp-{source}-k1-64" in keys
    assert {"prune-predicted-k0-64", "random-k1-64", "ilp-predicted-kall-64"} <= set(keys)
    random = [arm for arm in study.arms if "random" in (arm.method, arm.region_source) and arm.layer != ALL]
    assert {"random-k1-64", "ilp-random-k1-64"} <= {arm.key for arm in random}
    assert all(len(arm.seeds) == seeds for arm in random)


def test_ls_show_cp(tmp_path, capsys):
    assert main(["ls", "testbed/st"]) == 0
    assert re.match(r"testbed/study +ILP against dense", capsys.readouterr().out)
    assert main(["show", "testbed/study"]) == 0
    assert capsys.readouterr().out == recipe.find("testbed/study").read_text()
    assert main(["cp", "testbed/study", str(tmp_path / "mine.yaml")]) == 0
    assert main(["cp", "testbed/study", str(tmp_path / "mine.yaml")]) == 2
    assert "--clobber" in capsys.readouterr().err
