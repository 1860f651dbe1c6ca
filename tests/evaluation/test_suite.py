"""Suites: what is wrong with one is told at once, and what it sums up follows from the rows of its benchmarks."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cropl.errors import UsageError
from cropl.evaluation.suite import SHARED, Suite, summarize, together

BENCHMARK = """
vars: {{data: data, root: "${{vars.data}}/{name}"}}
benchmark: {name}
scorer: {name}
data: {{class_path: cropl.data.published.questions, init_args: {{sources: [], count: 3}}}}
annotations: ["${{vars.root}}/labels.json"]
max_new_tokens: 7
"""
ARMS = [{"method": "fastv", "layer": 2, "budget": [64, 32]}]


@pytest.fixture
def recipes(tmp_path: Path) -> dict[str, str]:
    """Two benchmarks, a study and a training, by what they are."""
    for name in ("gqa", "pope"):
        (tmp_path / f"{name}.yaml").write_text(BENCHMARK.format(name=name))
    return {name: str(tmp_path / f"{name}.yaml") for name in ("gqa", "pope")}


def suite(recipes: dict[str, str], **changes: Any) -> Suite:
    config = {"model": "m", "arms": ARMS, "benchmarks": list(recipes.values()), **changes}
    return Suite.from_config({key: value for key, value in config.items() if value is not ...})


def test_every_benchmark_becomes_a_study_of_the_suites_arms(recipes) -> None:
    made = suite(recipes, batch_size=3, limit=5, paper="LLaVA-1.5-7B", tables="table2", out="there")
    assert (made.paper, made.tables, made.out, made.prepare) == ("LLaVA-1.5-7B", ("table2",), "there", (None, None))
    gqa, pope = made.studies
    assert (gqa.benchmark, gqa.scorer, gqa.annotations) == ("gqa", "gqa", ("data/gqa/labels.json",))
    assert (gqa.max_new_tokens, gqa.batch_size, gqa.limit, pope.benchmark) == (7, 3, 5, "pope")
    assert [arm.key for arm in gqa.arms] == [arm.key for arm in pope.arms] == ["dense", "fastv-k2-64", "fastv-k2-32"]


def test_vars_of_the_suite_reach_benchmarks_that_have_them(recipes) -> None:
    made = suite(recipes, vars={"data": "/sets", "budgets": [1]})
    assert [one.annotations for one in made.studies] == [("/sets/gqa/labels.json",), ("/sets/pope/labels.json",)]


def test_an_entry_may_have_keys_of_its_own(recipes) -> None:
    own = {"recipe": recipes["gqa"], "limit": 2, "arms": [{"method": "random", "layer": 1, "budget": 8}]}
    own |= {"vars": {"root": "elsewhere"}, "max_new_tokens": 1, "controls": "blank_image", "benchmark": "ours"}
    made = suite(recipes, benchmarks=[own, recipes["pope"]], limit=9, vars={"data": "/sets"})
    gqa, pope = made.studies
    assert (gqa.benchmark, gqa.limit, gqa.max_new_tokens, pope.limit) == ("ours", 2, 1, 9)
    assert gqa.annotations == ("elsewhere/labels.json",) and pope.annotations == ("/sets/pope/labels.json",)
    assert [arm.key for arm in gqa.arms] == ["dense", "dense-blank_image", "random-k1-8"]
    assert [arm.method for arm in pope.arms] == ["dense", "fastv", "fastv"]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"bench": 1}, "suite: unknown key 'bench'; did you mean 'benchmarks'"),
    ({"batchsize": 1}, "suite: unknown key 'batchsize'; did you mean 'batch_size'"),
    ({"data": {"class_path": "x.y"}}, "suite: unknown key 'data'"),
    ({"scorer": "gqa"}, "suite: unknown key 'scorer'"),
    ({"benchmarks": []}, "benchmarks is an empty list; name recipes, such as benchmark/gqa"),
    ({"benchmarks": None}, "a benchmark must be a recipe's name, or a mapping with `recipe`, not None"),
    ({"benchmarks": [3]}, "a benchmark must be a recipe's name, .* not 3"),
    ({"benchmarks": [{"limit": 3}]}, "a benchmark must be a recipe's name"),
    ({"benchmarks": ["benchmark/gqua"]}, "unknown recipe 'benchmark/gqua'; did you mean 'benchmark/gqa'"),
    ({"benchmarks": ["testbed/study"]}, "testbed/study is a study: cropl evaluate -c testbed/study"),
    ({"benchmarks": ["testbed/llava"]}, "testbed/llava is a training recipe: cropl fit -c testbed/llava"),
    ({"benchmarks": ["data/gqa"]}, "data/gqa is a data recipe"),
    ({"benchmarks": ["GQA", "GQA"]}, "'gqa' names two benchmarks"),
    ({"benchmarks": [{"recipe": "GQA", "benchmark": "a/b"}]}, "'a/b' names two benchmarks, or no folder of results"),
    ({"benchmarks": [{"recipe": "GQA", "benchmark": "../b"}]}, "no folder of results: change `benchmark`"),
    ({"benchmarks": [{"recipe": "GQA", "limt": 3}]}, "gqa.yaml: unknown key 'limt'; did you mean 'limit'"),
    ({"benchmarks": [{"recipe": "GQA", "model": "n"}]}, "gqa.yaml: unknown key 'model'"),
    ({"benchmarks": [{"recipe": "GQA", "limit": 0}]}, "gqa.yaml: study: limit 0 must be an integer, at least 1"),
    ({"benchmarks": [{"recipe": "GQA", "arms": []}]}, "gqa.yaml: study: key 'arms' is missing"),
    ({"benchmarks": [{"recipe": "GQA", "data": None}]}, "gqa.yaml: key 'data' is missing"),
    ({"benchmarks": [{"recipe": "GQA", "benchmark": ""}]}, "gqa.yaml: key 'benchmark' is missing"),
    ({"benchmarks": [{"recipe": "GQA", "benchmark": 5}]}, "gqa.yaml: study: benchmark 5 must be text"),
    ({"benchmarks": [{"recipe": "GQA", "vars": {"rot": "x"}}]}, "unknown key 'vars.rot'; did you mean 'vars.root'"),
    ({"benchmarks": [{"recipe": "GQA", "vars": 3}]}, "gqa.yaml: vars 3 must be a mapping"),
    ({"vars": 3}, "suite: vars 3 must be a mapping"),
    ({"tables": ["table11"]}, "suite: tables: unknown value 'table11'; did you mean 'table1"),
    ({"tables": "table1"}, "suite: tables: unknown value 'table1'"),
    ({"paper": "LLaVA-1.5-8B"}, "paper: no figures of a model 'LLaVA-1.5-8B'; did you mean 'LLaVA-1.5-"),
    ({"paper": 3}, "paper 3 must be text or null"),
    ({"arms": ...}, "key 'arms' is missing"),
    ({"model": ...}, "key 'model' is missing"),
    ({"arms": [{"method": "fastw"}]}, "gqa.yaml: .*did you mean 'fastv'"),
]


@pytest.mark.parametrize(("changes", "message"), WRONG, ids=[message for _, message in WRONG])
def test_what_is_wrong_is_named(recipes, changes, message) -> None:
    def named(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: named(one) for key, one in value.items()}
        return [named(one) for one in value] if isinstance(value, list) else recipes["gqa"] if value == "GQA" else value

    with pytest.raises(UsageError, match=message.replace("(", r"\(")):
        suite(recipes, **named(changes))


def row(arm: str, benchmark: str, score: float | None, **changes: Any) -> dict[str, Any]:
    """A row with what a suite needs of one."""
    made = {**dict.fromkeys(SHARED), "arm": arm, "benchmark": benchmark, "score": score, "rel_acc_sd": 0.0}
    made |= {"method": arm.partition("-")[0], "region_source": "none", "score_ci95": None if score is None else [0, 1]}
    made |= {"tokens_kept_mean": 10.0, "layer_average_tokens": 20.0, "prefill_flops": 30.0, "kv_bytes": 40.0}
    made |= {"prefill_flops_with_localizer": 31.0, "seconds": 1.0, "encode_seconds": 2.0, "text_only_seconds": 4.0}
    return made | {"localizer_seconds": 8.0, "images": 10, "n": 60, "text_only": 20} | changes


def test_means_over_benchmarks_are_the_papers() -> None:
    scores = {"dense": (50.0, 2000.0, None), "fastv-64": (45.0, 1500.0, None), "ilp-64": (None, 1900.0, None)}
    rows = [row(arm, name, score) for arm, mine in scores.items() for name, score in zip("gmv", mine, strict=True)]
    dense, fastv, ilp = summarize(rows, list("gmv"))
    assert [one["arm"] for one in (dense, fastv, ilp)] == list(scores)
    assert (dense["rel_acc"], dense["rel_acc_ci95"]) == (100, [100, 100])
    assert fastv["rel_acc"] == pytest.approx(100 * (45 / 50 + 1500 / 2000) / 2)
    assert ilp["rel_acc"] == pytest.approx(95) and ilp["scores"] == {"g": None, "m": 1900.0, "v": None}
    assert ilp["scores_ci95"] == {"g": None, "m": [0, 1], "v": None}


def test_what_nobody_scored_has_no_mean() -> None:
    (dense,) = summarize([row("dense", "v", None)], ["v"])
    assert dense["rel_acc"] is None and dense["rel_acc_ci95"] is None and dense["scores"] == {"v": None}
    silent, ilp = summarize([row("dense", "g", 0.0), row("ilp-64", "g", 3.0, rel_acc_sd=None)], ["g"])
    assert silent["rel_acc"] is None and ilp["rel_acc"] is None, "nothing is a share of 0"


def test_an_arm_that_is_infeasible_somewhere_is_so_in_the_suite() -> None:
    nothing = dict.fromkeys(("tokens_kept_mean", "layer_average_tokens", "prefill_flops", "kv_bytes", "seconds"))
    rows = [row("dense", "g", 50.0), row("dense", "m", 50.0), row("ilp-1", "g", 40.0)]
    rows.append(row("ilp-1", "m", None, infeasible="takes more", rel_acc_sd=None, **nothing))
    _, ilp = summarize(rows, ["g", "m"])
    assert ilp["infeasible"] == "takes more" and ilp["rel_acc"] == 80
    assert ilp["tokens_kept"] == {"g": 10, "m": None} and ilp["seconds"] == {"g": 13, "m": None}
    assert ilp["tokens_kept_mean"] is None and ilp["kv_bytes"] is None, "no mean of some"


def test_an_arm_of_one_benchmark_stands_in_the_suite_with_that() -> None:
    rows = [row("dense", "g", 50.0), row("dense", "t", 20.0), row("ilp-gt-64", "t", 19.0, tokens_kept_mean=64.0)]
    _, ilp = summarize(rows, ["g", "t"])
    assert ilp["scores"] == {"g": None, "t": 19.0} and ilp["scores_ci95"] == {"g": None, "t": [0, 1]}
    assert ilp["tokens_kept"] == {"t": 64.0} and ilp["tokens_kept_mean"] == 64 and ilp["rel_acc"] == 95
    assert ilp["seconds"] == {"t": 13.0} and ilp["rel_acc_over"] == ["t"]


def test_relative_accuracy_is_over_the_same_benchmarks_in_all_rows() -> None:
    """One benchmark has an arm more, and its share of dense in no mean of the others."""
    rows = [row(arm, name, score) for name in "gmt" for arm, score in (("dense", 50.0), ("ilp-64", 40.0))]
    rows[-1]["score"] = 10.0
    rows.append(row("ilp-gt-64", "t", 25.0))
    dense, ilp, gt = summarize(rows, list("gmt"))
    assert ilp["rel_acc"] == 80 and ilp["rel_acc_over"] == ["g", "m"] == dense["rel_acc_over"]
    assert gt["rel_acc"] == 50 and ilp["scores"]["t"] == 10


@pytest.mark.parametrize(
    ("source", "seconds"),
    [("none", 13), ("gt", 13), ("predicted", 21), ("center", 21), ("zero_shot", None), ("file", None)],
)
def test_seconds_are_of_all_that_an_arm_needs(source, seconds) -> None:
    rows = [row("dense", "g", 1.0), row("ilp-64", "g", 1.0, region_source=source)]
    assert summarize(rows, ["g"])[1]["seconds"] == {"g": seconds}
    rows[1]["localizer_seconds"] = None
    assert summarize(rows, ["g"])[1]["seconds"] == {"g": seconds if seconds == 13 else None}


def test_the_interval_is_that_of_benchmarks_drawn_each_by_itself() -> None:
    """Against a bootstrap: of every benchmark its own questions are drawn, ours and the dense answers' together."""
    rng, resamples = np.random.default_rng(0), 4000
    rows: list[dict[str, Any]] = [row("dense", name, None) for name in "abc"]
    drawn = []
    for place, (questions, share) in enumerate([(400, 0.8), (900, 0.6), (250, 0.7)]):
        dense = rng.random(questions) < share
        ours = np.where(rng.random(questions) < 0.85, dense, rng.random(questions) < 0.5)
        picks = rng.integers(questions, size=(resamples, questions))
        ratio_R = 100 * ours[picks].mean(1) / dense[picks].mean(1)
        drawn.append(ratio_R)
        rows[place]["score"] = 100 * dense.mean()
        rows.append(row("ilp-64", "abc"[place], 100 * ours.mean(), rel_acc_sd=float(ratio_R.std())))
    _, ilp = summarize(rows, list("abc"))
    low, high = np.quantile(np.mean(drawn, axis=0), [0.025, 0.975])
    width = high - low
    assert ilp["rel_acc_ci95"] == [pytest.approx(low, abs=0.06 * width), pytest.approx(high, abs=0.06 * width)]
    narrowest = min(np.diff(np.quantile(one, [0.025, 0.975]))[0] for one in drawn)
    assert width < narrowest, "benchmarks that are drawn apart leave the mean surer than any of them"


def test_everything_of_a_suite_is_together(recipes) -> None:
    made = suite(recipes, tables=["table2"], paper="LLaVA-1.5-7B")
    pair = {"a": "A", "b": "B", "difference": 0.1}
    found = {
        name: {"rows": [row("dense", name, 9.0)], "localizer": recall, "comparisons": [pair]}
        for name, recall in (("gqa", None), ("pope", {"mean_recall": 0.5}))
    }
    results = together(made, "mine", found)
    assert {key: results[key] for key in ("kind", "benchmarks", "paper", "tables", "recipe")} == {
        "kind": "suite", "benchmarks": ["gqa", "pope"], "paper": "LLaVA-1.5-7B", "tables": ["table2"], "recipe": "mine"
    }  # fmt: skip
    assert [one["benchmark"] for one in results["rows"]] == ["gqa", "pope"] and len(results["suite"]) == 1
    assert results["localizer"] == {"gqa": None, "pope": {"mean_recall": 0.5}}
    assert results["comparisons"] == [{**pair, "benchmark": "gqa"}, {**pair, "benchmark": "pope"}]
