"""`cropl evaluate` on suites: the benchmarks' official formats end to end, on models that nobody trained."""

from __future__ import annotations

import json
import random
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cropl import recipe
from cropl.cli import main
from cropl.evaluation import collect, fingerprint
from cropl.evaluation.answer import answer_all
from cropl.evaluation.answers import Answered
from cropl.evaluation.official import UNSCORED
from cropl.evaluation.suite import SHARED
from cropl.testbed.official import FORMATS, export

RECIPE = """
vars: {{root: {root}}}
model: {model}
localizer: {localizer}
benchmarks:
  - {{recipe: testbed/benchmark/textvqa, prepare: null}}
  - {{recipe: testbed/benchmark/mme, prepare: null}}
  - recipe: testbed/benchmark/scenes
    vars: {{count: 4}}
    arms: [{{method: ilp, region_source: [gt, predicted], layer: 1, budget: 16}}]
paper: null
arms:
  - {{method: ilp, region_source: predicted, layer: 1, budget: 16}}
  - {{method: random, layer: 1, budget: 32}}
seeds: [0, 1]
bootstrap: 50
gallery: 1
"""
TIMES = ("seconds", "encode_seconds", "localizer_seconds", "peak_memory_bytes", "text_only_seconds")


@pytest.fixture(scope="session")
def official_files(tmp_path_factory) -> Path:
    return export(tmp_path_factory.mktemp("suite") / "official", count=14)


@pytest.fixture(scope="module", autouse=True)
def half_right(official_files):
    """Untrained models are always wrong: half of the answers are corrected, others of every run."""
    textvqa = json.loads((official_files / "textvqa/TextVQA_0.5.1_val.json").read_text())["data"]

    def known(sample: Any) -> str:
        if sample.answers:
            return str(sample.answers[0])
        (row,) = [row for row in textvqa if row["image_id"] in sample.id and row["question"] in sample.asked.lower()]
        return Counter(row["answers"]).most_common(1)[0][0]

    def corrected(vlm: Any, samples: Any, runs: Any, *rest: Any) -> Any:
        for batch in answer_all(vlm, samples, runs, *rest):
            yield [_corrected(one, samples) if isinstance(one, Answered) else one for one in batch]

    def _corrected(one: Answered, samples: Any) -> Answered:
        sample = samples[one.index]
        right = random.Random(f"{sample.key} {one.run}").random() < 0.5
        return replace(one, text=known(sample)) if right else one

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collect, "answer_all", corrected)
        patch.setattr(fingerprint, "code", lambda: "this")  # sources that are edited meanwhile change nothing
        yield


@pytest.fixture(scope="module")
def small(tmp_path_factory, official_files, tiny_llava, tiny_localizer) -> str:
    path: Path = tmp_path_factory.mktemp("recipe") / "small.yaml"
    path.write_text(RECIPE.format(root=official_files, model=tiny_llava, localizer=tiny_localizer))
    return str(path)


@pytest.fixture(scope="module")
def ran(small, tmp_path_factory) -> Path:
    out: Path = tmp_path_factory.mktemp("ran") / "tables"
    assert main(["evaluate", "-c", small, "--out", str(out)]) == 0
    return out


def read(out: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((out / "results.json").read_text())
    return found


def plain(out: Path) -> tuple[Any, list[list[str]]]:
    """The results of a suite but for times, and all its predictions."""
    results = read(out)
    for row in results["rows"]:
        row.update(dict.fromkeys((*TIMES, "batch_size", "threads")))
    for line in results["suite"]:
        del line["seconds"]
    return results, [(out / name / "predictions.jsonl").read_text().splitlines() for name in results["benchmarks"]]


def test_a_suite_writes_what_reports_read(ran) -> None:
    results = read(ran)
    assert {key: results[key] for key in ("kind", "benchmarks", "paper", "tables", "recipe")} == {
        "kind": "suite", "benchmarks": ["textvqa", "mme", "scenes"], "paper": None, "tables": None,
        "recipe": "small.yaml",
    }  # fmt: skip
    assert set(results) == {"kind", "benchmarks", "paper", "tables", "recipe", "rows", "suite", "localizer",
                            "comparisons"}  # fmt: skip
    arms = ["dense", "ilp-predicted-k1-16", "random-k1-32"]
    own = ["dense", "ilp-gt-k1-16", "ilp-predicted-k1-16"]
    shown = [(row["benchmark"], row["arm"]) for row in results["rows"]]
    assert shown == [(name, arm) for name in ("textvqa", "mme") for arm in arms] + [("scenes", arm) for arm in own]
    for row in results["rows"]:
        assert set(row) >= {*SHARED, *UNSCORED, "scorer", "accuracy", "vs_dense"} and row["score"] > 0
        assert row["score_source"] == ("exact match" if row["benchmark"] == "scenes" else "local")
        assert row["scorer"] == {"scenes": None}.get(row["benchmark"], row["benchmark"])
    assert [row["n"] for row in results["rows"]] == [21] * 3 + [28] * 3 + [4] * 3
    assert [line["arm"] for line in results["suite"]] == [*arms, "ilp-gt-k1-16"]
    for line in results["suite"]:
        assert set(line) == {
            *SHARED, "scores", "scores_ci95", "rel_acc", "rel_acc_over", "rel_acc_ci95", "tokens_kept",
            "tokens_kept_mean", "layer_average_tokens", "prefill_flops", "prefill_flops_with_localizer",
            "kv_bytes", "seconds",
        }  # fmt: skip
        mine = {row["benchmark"]: row for row in results["rows"] if row["arm"] == line["arm"]}
        for name in results["benchmarks"]:
            assert line["scores"][name] == (mine[name]["score"] if name in mine else None)
        assert set(line["seconds"]) == set(line["tokens_kept"]) == set(mine)
        relative = [mine[name]["rel_acc"] for name in line["rel_acc_over"]]
        assert line["rel_acc"] == pytest.approx(sum(relative) / len(relative))
    assert results["localizer"]["mme"] is None and results["localizer"]["scenes"]["n"] == 4
    assert [one["benchmark"] for one in results["comparisons"]] == ["scenes"]


def test_every_benchmark_has_a_folder_of_its_own(ran) -> None:
    assert sorted(path.name for path in ran.iterdir()) == ["mme", "results.json", "scenes", "textvqa"]
    for name in ("textvqa", "mme", "scenes"):
        rows = [row for row in read(ran)["rows"] if row["benchmark"] == name]
        assert read(ran / name)["rows"] == rows
        own = {path.name for path in (ran / name).iterdir()}
        assert own - {"submissions"} == {"results.json", "predictions.jsonl", "report.html"}, "no journal stays"
        assert ("submissions" in own) == (name != "scenes")
        lines = [json.loads(line) for line in (ran / name / "predictions.jsonl").read_text().splitlines()]
        for row in rows:
            seeds = [f"{row['arm']}#{seed}" for seed in row["seeds"]] if row["seeds"] else [row["arm"]]
            credit = [line["arms"][seed]["credit"] for line in lines for seed in seeds]
            assert sum(credit) / len(credit) == pytest.approx(row["accuracy"])
            assert all(one["correct"] == (one["credit"] >= 0.5) for line in lines for one in line["arms"].values())


def check_scores(out: Path, root: Path, name: str, folder: Path) -> None:
    """`cropl score` makes the row's scores of what the run left for the benchmark's own script or server."""
    loaded = recipe.load([f"testbed/benchmark/{name}"], {"vars.root": str(root)})
    rows = [row for row in read(out)["rows"] if row["benchmark"] == name and not row["seeds"]]
    assert len(rows) >= 2
    for row in rows:
        (file,) = (out / name / "submissions" / row["arm"]).iterdir()
        given = ["--predictions", str(file), "--annotations", *loaded["annotations"], "--out", str(folder / "s.json")]
        assert main(["score", loaded["scorer"], *given]) == 0
        told = json.loads((folder / "s.json").read_text())
        assert told["scores"] == pytest.approx(row["scores"]) and told["primary"] == row["primary"]
        assert row["score"] == row["scores"][row["primary"]] and told["n"] == row["n"]


@pytest.mark.parametrize("name", ["textvqa", "mme"])
def test_submissions_have_the_scores_of_their_rows(ran, official_files, tmp_path, name) -> None:
    check_scores(ran, official_files, name, tmp_path)
    seeds = {path.name for path in (ran / name / "submissions").iterdir()}
    assert seeds == {"dense", "ilp-predicted-k1-16", "random-k1-32#0", "random-k1-32#1"}


@pytest.mark.slow
def test_submissions_of_all_benchmarks_have_the_scores_of_their_rows(small, official_files, tmp_path) -> None:
    entries = [{"recipe": f"testbed/benchmark/{name}", "prepare": None} for name in FORMATS]
    out = tmp_path / "six"
    assert main(["evaluate", "-c", small, "--out", str(out), "--benchmarks", json.dumps(entries)]) == 0
    for name in FORMATS:
        check_scores(out, official_files, name, tmp_path)
        assert all(0 < row["accuracy"] < 1 for row in read(out)["rows"] if row["benchmark"] == name)
    assert [row["text_only"] for row in read(out / "scienceqa")["rows"]] == [7] * 3


def test_a_report_is_made_of_it(ran, tmp_path, capsys) -> None:
    assert main(["report", str(ran), "-o", str(tmp_path / "report")]) == 0
    made = {path.name for path in (tmp_path / "report").iterdir()}
    assert made >= {"tables.json", "tables.md", "tables.tex", "tables.csv", "tables.html", "tables_scores.svg"}
    assert "9 rows" in capsys.readouterr().out
    page = (tmp_path / "report/tables.html").read_text()
    assert all(name in page for name in ("TextVQA", "MME"))


def test_a_limit_holds_for_every_benchmark(small, tmp_path, capsys) -> None:
    out = tmp_path / "out"
    assert main(["evaluate", "-c", small, "--out", str(out), "--limit", "2"]) == 0
    assert {row["n"] for row in read(out)["rows"]} == {2} and {row["limit"] for row in read(out)["rows"]} == {2}
    assert not list(out.glob("*/submissions")), "no part of a benchmark is handed in"
    told = capsys.readouterr().out
    assert f"tables over all benchmarks: cropl report {out} -o DIR" in told
    assert main(["evaluate", "-c", small, "--out", str(tmp_path / "odd"), "--limit", "3"]) == 2
    assert "limit 3: mme: an image with 1 questions" in capsys.readouterr().err
