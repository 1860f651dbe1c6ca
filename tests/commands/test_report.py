"""`cropl report`: tables and plots of stored runs."""

from __future__ import annotations

import json

import pytest

from cropl.cli import main
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
        "study.json", "study.md", "study_flops.svg", "study_seconds.svg", "study_tokens.svg"
    ]  # fmt: skip
    assert json.loads((out / "study.json").read_text())["rows"] == ROWS
    assert "14 rows, 3 plots" in capsys.readouterr().out
    assert main(["report", str(stored / "results.json"), "-o", str(out)]) == 0  # the file will do, and again is fine


@pytest.mark.parametrize(
    ("content", "said"),
    [(None, "no results.json there"), ("{", "not readable as JSON"), ("{}", "holds no rows"), ("[]", "holds no rows")],
)
def test_what_is_no_run_is_refused(tmp_path, capsys, content, said):
    folder = tmp_path / "other"
    folder.mkdir()
    if content is not None:
        (folder / "results.json").write_text(content)
    assert main(["report", str(folder), "-o", str(tmp_path / "out")]) == 2
    assert said in capsys.readouterr().err


def test_two_runs_of_one_name_are_refused(stored, tmp_path, capsys):
    other = tmp_path / "else/study"
    other.mkdir(parents=True)
    (other / "results.json").write_text((stored / "results.json").read_text())
    assert main(["report", str(stored), str(other), "-o", str(tmp_path / "out")]) == 2
    assert "two runs are called 'study'" in capsys.readouterr().err
