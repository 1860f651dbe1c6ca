"""`cropl report`: tables and plots of stored runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from cropl.cli import main
from cropl.evaluation.reporting.suite_check import check_suite
from cropl.evaluation.row_check import check_results
from tests.evaluation.suites import arm, suite, table2
from tests.evaluation.suites import stored as store
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


def test_a_suite_has_tables_in_four_forms_plots_and_one_page(tmp_path, capsys):
    folder, out = store(tmp_path / "runs/table2", table2()), tmp_path / "out"
    assert main(["report", str(folder), "-o", str(out)]) == 0
    assert sorted(path.name for path in out.iterdir()) == [
        "table2.csv", "table2.html", "table2.json", "table2.md", "table2.tex", "table2_layers.svg",
        "table2_recall.svg", "table2_rel_acc.svg", "table2_scores.svg",
    ]  # fmt: skip
    assert "8 tables, 4 plots" in capsys.readouterr().out
    page = (out / "table2.html").read_text()
    assert not re.findall(r'(?:src|href)="(?!data:)([^"]*)"', page) and "url(" not in page
    assert "<b>ilp</b>" not in page and "&lt;b&gt;ilp&lt;/b&gt;" in page and "What is &lt;2&gt;?" in page
    assert page.count("data:image/svg+xml;base64,") == 4 and page.count("data:image/jpeg;base64,") >= 12
    assert "the pictures of 6 are not here" in page and "Table 2: CROP on LLaVA-1.5" in page
    text = (out / "table2.md").read_text()
    assert "(table2_rel_acc.svg)" in text and "*paper: CROP-ILP*" in text and "Paired comparisons on GQA" in text


def test_a_suite_is_reported_the_same_again_byte_for_byte(tmp_path):
    arms = [arm("dense"), arm("ilp", 64), arm("ilp", 64, layer=5)]
    folder, out = store(tmp_path / "few", suite(arms, ("gqa",))), tmp_path / "out"
    assert main(["report", str(folder), "-o", str(out)]) == 0
    first = {path.name: path.read_bytes() for path in out.iterdir()}
    assert main(["report", str(folder / "results.json"), "-o", str(out)]) == 0
    assert {path.name: path.read_bytes() for path in out.iterdir()} == first and len(first) == 9


def test_a_suite_without_answers_or_paper_is_shown_as_far_as_it_goes(tmp_path, capsys):
    folder = tmp_path / "plain"
    folder.mkdir()
    arms = [arm("dense"), arm("ilp", 64)]
    results = suite(arms, ("gqa", "vqav2"), None, ["table2", "table8"])
    (folder / "results.json").write_text(json.dumps(results))
    assert main(["report", str(folder), "-o", str(tmp_path / "out")]) == 0
    assert "1 tables, 2 plots; the rows cannot fill table8" in capsys.readouterr().out
    page = (tmp_path / "out/plain.html").read_text()
    assert "What was kept" not in page and "cannot fill table8 of the paper" in page


def test_scores_of_a_server_are_filled_in(tmp_path, capsys):
    folder = store(tmp_path / "few", suite([arm("dense"), arm("ilp", 64)]), pictures=False)
    server = tmp_path / "server.json"
    server.write_text(json.dumps({"dense": 78.5, "ilp-predicted-2-64": 74.0}))
    command = ["report", str(folder), "-o", str(tmp_path / "out")]
    assert main([*command, "--external", f"vqav2={server}"]) == 0
    assert "| 74.0\\* |" in (tmp_path / "out/few.md").read_text()
    stored_again = json.loads((tmp_path / "out/few.json").read_text())
    check_suite(stored_again, "few.json")
    assert stored_again["suite"][1]["scores"]["vqav2"] == 74.0
    for given, said in (
        ("vqav2", "must be BENCHMARK=FILE"), (f"mmmu={server}", "'mmmu' is no benchmark"),
        (f"vqav2={tmp_path}/none.json", "not readable as JSON"),
    ):  # fmt: skip
        assert main([*command, "--external", given]) == 2
        assert said in capsys.readouterr().err
    assert main(["report", str(folder), str(tmp_path), "-o", "x", "--external", f"vqav2={server}"]) == 2


def test_servers_scores_are_for_one_suite(stored, tmp_path, capsys):
    folder = store(tmp_path / "few", suite([arm("dense"), arm("ilp", 64)]), pictures=False)
    options = ["-o", str(tmp_path / "out"), "--external", "vqav2=x"]
    assert main(["report", str(stored), *options]) == 2
    assert "is a single study" in capsys.readouterr().err
    assert main(["report", str(stored), str(folder), *options]) == 2
    assert "Give one RUN with it" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"benchmarks": []}, "benchmarks must be a list of names"),
        ({"suite": None}, "suite holds no arms"),
        ({"suite": [{"arm": "dense"}]}, "arm 1 has no method, region_source"),
        ({"paper": "LLaVA"}, "paper: no figures of a model 'LLaVA'"),
        ({"tables": ["table1"]}, "tables: the paper has no 'table1'"),
        ({"tables": "table2"}, "tables must be a list"),
        ({"benchmarks": ["gqa"]}, "(dense on mme) is of no arm of the suite"),
        ({"comparisons": [{"a": "x", "b": "y", "budget": 1, "difference": 0.1, "ci95": [0, 1]}]}, "has no benchmark"),
        ({"localizer": {"gqa": {"n": 3}}}, "localizer on gqa has no mean_recall"),
        ({"localizer": [1]}, "localizer is no mapping"),
        ({"rows": []}, "holds no rows"),
    ],
)
def test_a_suite_that_cannot_be_shown_is_refused(tmp_path, capsys, change, said):
    results = {**suite([arm("dense"), arm("ilp", 64)]), **change}
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    told = capsys.readouterr().err
    assert said in told and "Traceback" not in told


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"scores": None}, "arm 2 (ilp-predicted-2-64): scores 'None' must be a mapping of benchmarks"),
        ({"scores": {"gqa": "x"}}, "each to a number or null"),
        ({"seconds": {"gqa": 0}}, "each to a number above 0 or null"),
        ({"rel_acc_ci95": [1]}, "rel_acc_ci95 '[1]' must be a list of two numbers, or null"),
    ],
)
def test_an_arm_that_cannot_be_shown_is_named(tmp_path, capsys, change, said):
    results = suite([arm("dense"), arm("ilp", 64)])
    results["suite"][1] |= change
    (tmp_path / "results.json").write_text(json.dumps(results))
    assert main(["report", str(tmp_path), "-o", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err


def test_one_benchmark_of_a_suite_is_shown_alone(tmp_path):
    rows = table2()["rows"]
    for benchmark in ("mme", "vqav2"):  # one in points, one that a server scores
        folder = tmp_path / benchmark
        folder.mkdir()
        mine = [row for row in rows if row["benchmark"] == benchmark]
        (folder / "results.json").write_text(json.dumps({"rows": mine, "comparisons": []}))
        assert main(["report", str(folder), "-o", str(tmp_path / "out")]) == 0
    assert "| dense | 80.0 | 1850.0 | 100.0 |" in (tmp_path / "out/mme.md").read_text()
    assert "| dense | - | - | - |" in (tmp_path / "out/vqav2.md").read_text()
