"""`cropl report`: tables and plots of stored runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from cropl.cli import main
from cropl.evaluation.row_check import check_results
from tests.evaluation.test_shapes import ROWS


@pytest.fixture
def stored(tmp_path):
    folder = tmp_path / "runs/study"
    folder.mkdir(parents=True)
    (folder / "results.json").write_text(json.dumps({"rows": ROWS, "comparisons": []}))
    return folder


def test_tables_plots_and_rows_are_written(stored, tmp_path, capsys):
    out = tmp_path / "docs"
    assert main(["report", str(stored), "-o", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "study.json", "study.md", "study_flops.svg", "study_seconds.svg", "study_tokens.svg",
        "study_total_flops.svg", "study_total_seconds.svg",
    ]  # fmt: skip
    assert json.loads((out / "study.json").read_text())["rows"] == ROWS
    assert "14 rows, 5 plots" in capsys.readouterr().out
    assert main(["report", str(stored / "results.json"), "-o", str(out)]) == 0  # the file will do, and again is fine


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "no results.json there"),
        ("", "not readable as JSON"),
        ("{", "not readable as JSON"),
        ("\xff\x00", "not readable as JSON"),
        ("[" * 100_000, "not readable as JSON"),
        ("{}", "holds no rows"),
        ("[]", "holds no rows"),
        ("null", "holds no rows"),
        ("[1]", "holds no rows"),
        ('{"rows": {}}', "holds no rows"),
        ('{"rows": []}', "holds no rows"),
        ('{"rows": [1]}', "results.json: row 1 is no mapping of names to values, but '1'"),
        ('{"rows": [{}]}', "results.json: row 1 has no arm, method, region_source, layer"),
    ],
)
def test_what_is_no_run_is_refused(tmp_path, capsys, content, said):
    folder = tmp_path / "other"
    folder.mkdir()
    if content is not None:
        (folder / "results.json").write_text(content, encoding="latin-1")
    assert main(["report", str(folder), "-o", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"budget": ...}, "results.json: row 3 has no budget; run"),
        ({"budget": "64"}, "row 3: budget '64' must be a number, or null"),
        ({"layer": 1.5}, "row 3: layer '1.5' must be an integer, or null"),
        ({"num_layers": None}, "row 3: num_layers 'None' must be an integer"),
        ({"n": 0}, "row 3: n '0' must be a number above 0"),
        ({"accuracy": None}, "row 3 (ilp-predicted-64-1): accuracy 'None' must be a number"),
        ({"seconds": ..., "rel_acc": ...}, "row 3 (ilp-predicted-64-1) has no rel_acc, seconds"),
        ({"seconds": 0}, "seconds '0' must be a number above 0"),
        ({"prefill_flops": float("nan")}, "prefill_flops 'nan' must be a number above 0"),
        ({"accuracy_ci95": [0.5]}, "accuracy_ci95 '[0.5]' must be a list of two numbers"),
        ({"accuracy_by_kind": {"text": 1}}, "accuracy_by_kind \"{'text': 1}\" must be a mapping of kinds"),
        ({"options": []}, "options '[]' must be a mapping, or null"),
    ],
)
def test_a_row_that_cannot_be_shown_is_named(tmp_path, capsys, change, said):
    rows = [dict(row) for row in ROWS]
    rows[2] = {name: value for name, value in {**rows[2], **change}.items() if value is not ...}
    (tmp_path / "results.json").write_text(json.dumps({"rows": rows}))
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert said in told and "Traceback" not in told


def test_rows_without_a_dense_one_and_broken_comparisons_are_refused(tmp_path, capsys):
    for results, said in (
        ({"rows": ROWS[1:]}, "no row is the dense run's"),
        ({"rows": ROWS, "comparisons": {"a": 1}}, "comparisons must be a list"),
        ({"rows": ROWS, "comparisons": [{"a": "x"}]}, "comparison 1 has no b, budget, difference, ci95"),
    ):
        (tmp_path / "results.json").write_text(json.dumps(results))
        assert main(["report", str(tmp_path), "-o", str(tmp_path / "out")]) == 2
        assert said in capsys.readouterr().err


def test_stored_results_are_shown():
    for stored in sorted((Path(__file__).parents[2] / "docs/results/testbed").glob("*study*.json")):
        check_results(json.loads(stored.read_text()), stored.name)


def test_two_runs_of_one_name_are_refused(stored, tmp_path, capsys):
    other = tmp_path / "else/study"
    other.mkdir(parents=True)
    (other / "results.json").write_text((stored / "results.json").read_text())
    assert main(["report", str(stored), str(other), "-o", str(tmp_path / "out")]) == 2
    assert "two runs are called 'study'" in capsys.readouterr().err
