"""Scores that a server gave fill their cells, and RelAcc is of them all."""

from __future__ import annotations

import json

import pytest

from cropl.errors import UsageError
from cropl.evaluation.reporting.external import read_scores, with_scores
from cropl.evaluation.reporting.results import Results
from cropl.evaluation.reporting.suite_tables import tables
from cropl.metrics.relative import relative_accuracy
from tests.evaluation.suites import arm, suite, table2

ARMS = [arm("dense"), arm("ilp", 64), arm("pyramiddrop", 64, infeasible="never"), arm("dense", control="blank_image")]
SCORES = {"dense": 78.5, "ilp-predicted-2-64": 74.0}


def test_cells_are_filled_and_marked_and_relacc_is_taken_again():
    before = suite(ARMS)
    kept = json.dumps(before)
    after = with_scores(before, "vqav2", SCORES)
    assert json.dumps(before) == kept
    dense, ilp, never, control = after["suite"]
    assert (
        ilp["rel_acc"] == pytest.approx(relative_accuracy(ilp["scores"], dense["scores"])) and dense["rel_acc"] == 100
    )
    assert ilp["scores"]["vqav2"] == 74.0 and ilp["rel_acc_ci95"] is None and never == before["suite"][2]
    assert control["scores"]["vqav2"] is None
    rows = [row for row in after["rows"] if row["benchmark"] == "vqav2"]
    assert [row["score"] for row in rows] == [78.5, 74.0, None, None]
    assert rows[1]["rel_acc"] == pytest.approx(100 * 74 / 78.5)
    table = tables(Results(after))[0]
    cell = table.lines()[1].cells[table.columns.index("VQAv2")]
    assert (cell.mine(), cell.theirs(), cell.gap()) == ("74.0*", "74.8", "-0.8")
    assert any(note.startswith("* scored by") for note in table.notes)
    assert table.lines()[1].cells[-2].paper == 96.0  # all six now, as printed


@pytest.mark.parametrize(
    ("benchmark", "scores", "said"),
    [
        ("vqa", SCORES, "'vqa' is no benchmark of this suite.*vqav2"),
        ("gqa", SCORES, "gqa is scored already, such as of dense"),
        ("vqav2", {**SCORES, "ilp-64": 70.0}, "no arm 'ilp-64' that was answered"),
        ("vqav2", {**SCORES, "pyramiddrop-64": 70.0}, "no arm 'pyramiddrop-64' that was answered"),
        ("vqav2", {"dense": 78.5}, "no score of ilp-predicted-2-64"),
        ("vqav2", {"ilp-predicted-2-64": 74.0}, "no score of dense"),
    ],
)
def test_what_does_not_fit_the_suite_is_named(benchmark, scores, said):
    with pytest.raises(UsageError, match=said):
        with_scores(suite(ARMS), benchmark, scores)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "not readable as JSON"), ("[1]", "a score for each arm"), ("{}", "a score for each arm"),
        ('{"dense": "78"}', "the score of 'dense' is '78'"), ('{"dense": true}', "is 'True'"),
        ('{"dense": NaN}', "is 'nan'"), ('{"dense": -1}', "must be a number from 0 on"),
        ('{"dense": 0.785, "ilp": 0.74}', "give percent"),
        ('{"dense": 78.5, "ilp": 0.74}', "'ilp' is 0.74; give percent"),
        ('{"dense": 1%s}' % ("0" * 400), "must be a number"), ('{"dense": 0, "ilp": 0}', "no score is above 0"),
    ],
)  # fmt: skip
def test_files_that_hold_no_scores_are_refused(tmp_path, text, said):
    path = tmp_path / "server.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=said):
        read_scores(path)
    with pytest.raises(UsageError, match="not readable"):
        read_scores(tmp_path / "absent.json")


def test_relacc_stays_over_the_benchmarks_with_the_suites_own_arms():
    """A benchmark with other arms is in no row's RelAcc, also when a server scores it."""
    results = suite([arm("dense"), arm("ilp", 64), arm("fastv", 64)], ("gqa", "mme", "vqav2"))
    fewer = [row for row in results["rows"] if row["benchmark"] != "vqav2" or row["method"] != "fastv"]
    own = {**results, "rows": fewer}
    usual = with_scores(results, "vqav2", {"dense": 78.5, "ilp-predicted-2-64": 74.0, "fastv-2-64": 70.0})["suite"]
    other = with_scores(own, "vqav2", {"dense": 78.5, "ilp-predicted-2-64": 74.0})["suite"]
    assert [row["rel_acc_over"] for row in usual] == [["gqa", "mme", "vqav2"]] * 3
    assert [row["rel_acc_over"] for row in other] == [["gqa", "mme"]] * 3
    assert other[1]["scores"]["vqav2"] == 74.0 and other[1]["rel_acc"] == results["suite"][1]["rel_acc"]
    assert other[1]["rel_acc_ci95"] == results["suite"][1]["rel_acc_ci95"] and usual[1]["rel_acc_ci95"] is None


def test_every_arm_of_a_whole_table_can_be_given():
    results = table2()
    scores = {row["arm"]: 70.0 + place for place, row in enumerate(results["suite"]) if not row["infeasible"]}
    assert all(row["rel_acc"] for row in with_scores(results, "vqav2", scores)["suite"] if not row["infeasible"])
