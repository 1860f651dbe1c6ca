"""`cropl bench prune`: rows, tables and plots are written, and slips are one clear line."""

import copy
import json
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from cropl import cli
from cropl.bench.prune import shapes as published
from cropl.bench.prune.methods import METHODS
from cropl.bench.prune.table import (
    answer_table,
    compiled_table,
    markdown,
    memory_table,
    overhead_table,
    prefill_table,
    step_table,
)
from cropl.bench.prune.words import crossovers, growth, sentences
from cropl.commands import bench_pipeline, bench_prune
from tests.bench.test_prune import _published as _published
from tests.bench.test_prune import shapes as shapes

QUICK = ["--shapes", "small", "--pairs", "1", "--answer-pairs", "1", "--new-tokens", "[1,2]", "--overhead", "1"]
QUICK += ["--methods", "[ilp,fastv]", "--ragged", "[3]", "--growth", "[12]", "--device", "cpu"]


@pytest.fixture(scope="module")
def made(shapes: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], str, Path]:
    out = tmp_path_factory.mktemp("made") / "out" / "prune.json"
    with redirect_stdout(StringIO()) as shown:
        assert cli.main(["bench", "prune", *QUICK, "--out", str(out)]) == 0
    return json.loads(out.read_text()), shown.getvalue(), out


def test_rows_tables_and_plot_are_written(made: tuple[dict[str, Any], str, Path]) -> None:
    rows, shown, out = made
    assert {row["series"] for row in rows["rows"]} == {"methods", "growth", "ragged"} and len(rows["rows"]) == 6
    for key in ("hardware", "threads", "dtype", "attention", "seconds", "load", "versions", "commit"):
        assert rows[key] is not None or key == "commit", key
    assert rows["threads"] == 1 and rows["dtype"] == "float32" and len(rows["overhead"]) == 3
    text = out.with_suffix(".md").read_text()
    for row in rows["rows"]:
        ratio = row["prefill"]["speedup"]["llm"]["measured"]
        assert f"{ratio:.2f}x" in text and f"{ratio:.2f}x" in shown
    assert "prune.png" in text and "ragged batch of 3" in text and "localizer finder at 3,136 pixels" in shown
    with Image.open(out.with_suffix(".png")) as plot:
        assert plot.width > 1000 and len(plot.convert("RGB").getcolors(1 << 20) or []) > 20


def test_tables_and_sentences_say_what_rows_say(made: tuple[dict[str, Any], str, Path]) -> None:
    rows = copy.deepcopy(made[0]["rows"])
    shares = {"ilp": 0.5, "fastv": 0.25}
    for row in rows:
        row["prefill"]["speedup"]["llm"] |= {"of_ideal": shares[row["method"]], "measured": 2.0}
        row["prefill"]["unpatched"] = 0.4 if row["method"] == "ilp" else None
    said = sentences(rows)
    assert said.pop(0) == "budget: visual tokens behind the last prune (ilp, fastv)"
    assert said[0] == ("ilp: prefill at 50 % of its ideal speed-up, and at 80 % of unpatched layers of its lengths")
    assert said[1] == "fastv: prefill at 25 % of its ideal speed-up"
    assert growth(rows) == [(4, 2.0), (8, 2.0), (12, 2.0)]
    ragged = {**copy.deepcopy(rows[0]), "kept": [3, 9], "batch": rows[0]["batch"]}
    assert growth([*rows, ragged]) == growth(rows)  # padding is none of its business
    head, cells = prefill_table([*rows, {**rows[0], "failed": "out of memory"}])
    assert all(len(line) == len(head) for line in cells) and "out of memory" in cells[-1]
    lines = markdown((head, cells)).splitlines()
    assert len(lines) == len(cells) + 2 and {line.count("|") for line in lines} == {len(head) + 1}


def test_rows_are_kept_whatever_fails_after_the_work(
    shapes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def closed(made: Any) -> None:
        raise BrokenPipeError

    monkeypatch.setattr("cropl.commands.bench_prune.bench", lambda config: {"rows": [1]})
    monkeypatch.setattr("cropl.commands.bench_prune.show", closed)
    monkeypatch.setattr("cropl.commands.bench_pipeline.bench", lambda config: {"rows": [1]})
    monkeypatch.setattr("cropl.commands.bench_pipeline.show", closed)
    for verb, run in (("prune", bench_prune.run), ("pipeline", bench_pipeline.run)):
        out = tmp_path / f"{verb}.json"
        with pytest.raises(BrokenPipeError):
            run(["--out", str(out)])
        assert json.loads(out.read_text()) == {"rows": [1]}


def test_several_shapes_have_a_plot_each(shapes: Path, tmp_path: Path) -> None:
    (shapes / "other.json").write_text((shapes / "small.json").read_text())
    out = tmp_path / "both.json"
    short = ["--methods", "[ilp]", "--ragged", "[]", "--growth", "[]", "--new-tokens", "[]", "--overhead", "0"]
    short += ["--budgets", "[8]"]
    assert cli.main(["bench", "prune", *QUICK, *short, "--shapes", "[small,other]", "--out", str(out)]) == 0
    assert sorted(path.name for path in tmp_path.glob("both*")) == [
        "both.json", "both.md", "both_other.png", "both_small.png",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        (["--shapes", "smal"], "unknown shape 'smal'; did you mean 'small'?"),
        (["--methods", "[fastvv]"], "unknown method 'fastvv'; did you mean 'fastv'?"),
        (["--budgets", "[17]"], "small has 16 visual tokens, give a count from 1 to 16"),
        (["--growth", "[99]"], "give a count from 1 to 16"),
        (["--growth", "[99]"], "growth 99"),
        (["--budgets", "[regions]"], "fastv keeps a number of tokens"),
        (["--batch", "[]"], "batch is empty"),
        (["--shapes", "[]"], "shapes is empty"),
        (["--methods", "[]"], "methods is empty"),
        (["--budgets", "[]"], "budgets is empty"),
        (["--methods", "[1]"], "methods must be names of methods, got [1]"),
        (["--methods", "[null]"], "methods must be names of methods, got [None]"),
        (["--methods", "true"], "methods must be names of methods, got [True]"),
        (["--methods", "[[ilp]]"], "methods must be names of methods, got [['ilp']]"),
        (["--methods", "[{a: 1}]"], "methods must be names of methods, got [{'a': 1}]"),
        (["--compiled", "true"], "compiled must be names of methods, got [True]"),
        (["--compiled", "5"], "compiled must be names of methods, got [5]"),
        (["--answer-budgets", "least."], "unknown answer_budgets 'least.'; did you mean 'least'?"),
        (["--answer-budgets", "[8]"], "unknown answer_budgets [8]"),
        (["--compiled", "[ilpp]"], "unknown method 'ilpp'; did you mean 'ilp'?"),
        (["--pairs", "0"], "pairs must be at least 1"),
        (["--answer-pairs", "-1"], "answer_pairs must be an integer of at least 0"),
        (["--batch", "[0]"], "batch must be integers of at least 1"),
        (["--dtype", "int8"], "unknown dtype 'int8'"),
        (["--bach", "1"], "unknown key 'bach'"),
        (["--shapes", "finder"], "finder cannot be pruned"),
        (["--out", "rows.csv"], "must end with .json"),
    ],
)
def test_a_slip_is_one_clear_line(
    args: list[str], expected: str, shapes: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if "finder" in args:  # a family that pruning does not know, whichever those are
        monkeypatch.setattr("cropl.models.qwen2_vl.Qwen2VLVLM.prunable", False)
    assert cli.main(["bench", "prune", *QUICK, *args]) == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("cropl: error: ") and expected in lines[0], lines


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_a_gpu_that_is_not_there_is_one_clear_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "prune", "-c", "bench/prune_gpu"]) == 2
    assert "torch finds no GPU here: leave it out, or give cpu" in capsys.readouterr().err


def test_help_is_shown(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["bench", "prune", "--help"]) == 0 == cli.main(["bench", "--help"])
    shown = capsys.readouterr().out
    assert "cropl bench prune" in shown and "bench/prune_gpu" in shown


def test_the_gpu_recipe_names_shapes_and_budgets_that_exist() -> None:
    from cropl.bench.prune.plan import Plan
    from cropl.commands.measurement import configured

    config = configured("prune", ["-c", "bench/prune_gpu"], ("pairs", "threads"), optional="threads")
    assert config["device"] == "cuda" and config["pairs"] >= 20 and config["batch"] == [1, 8, 32]
    plan = Plan(
        config["methods"], config["budgets"], config["batch"], config["new_tokens"], 20, 3, config["ragged"],
        config["growth"],
    )  # fmt: skip
    for name in config["shapes"]:
        own = 2  # plc and dense have a number of tokens of their own
        each = 3 * (len(config["methods"]) - own) + own
        assert plan.steps(published.shape_of(name)) == 3 * each + len(config["ragged"])
    assert set(config["methods"]) == set(METHODS) and config["new_tokens"] == [4, 32, 128]


def test_the_default_recipe_fits_every_shape() -> None:
    from cropl.bench.prune.plan import Plan
    from cropl.commands.measurement import configured

    config = configured("prune", [], ("pairs", "threads"), optional="threads")
    plan = Plan(
        config["methods"], None, config["batch"], config["new_tokens"], 1, 0, config["ragged"], config["growth"]
    )
    assert (config["answer_pairs"], config["answer_budgets"]) == (6, "least")  # 25 s a pair: minutes for each budget
    for shape in map(published.shape_of, published.names()):
        arms = plan.arms(shape, 16)["growth", 1]
        assert [one.tokens for one in arms] == [round(share * shape.visual_tokens) for share in config["growth"]]
    assert [one.tokens for one in plan.arms(published.shape_of("scaled"), 16)["growth", 1]] == [32, 288, 384, 480]


def compiled(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """A row as of a compiled arm, from one of an eager arm."""
    row = copy.deepcopy(next(row for row in rows if row["method"] == "ilp" and "answers" in row))
    row |= {"series": "compiled", "compiled": True, "first_s": 61.5, "buckets": [704, 160]}
    row["prefill"] |= {"ideal_of_buckets": 3.25, "unpatched": None}
    for part in (row["prefill"], row["answers"]["1"], row["answers"]["2"]):
        part["speedup"]["llm"]["pairs"] = 6 if part is row["prefill"] else 1
        part["eager"] = {"dense": {"seconds": 7.125}, "measured": 5.25, "interval": [5.0, 5.5]}
    return row


def test_compiled_rows_stand_beside_both_dense_runs(made: tuple[dict[str, Any], str, Path]) -> None:
    rows = [*made[0]["rows"], compiled(made[0]["rows"])]
    assert compiled_table(made[0]["rows"])[1] == []
    head, cells = compiled_table(rows)
    assert head.count("95 %, least-most below 6 pairs") == 2
    assert [line[head.index("part")] for line in cells] == ["prefill", "1 tokens", "2 tokens"]
    assert all(len(line) == len(head) and line[0] == "ilp, compiled" and "5.25x" in line for line in cells)
    assert cells[0][-5:-2] == [cells[0][head.index("ideal")], "3.25x", "704, 160"] and cells[0][-1] == "61.5"
    for table in (prefill_table, answer_table, step_table):
        head, cells = table(rows)
        assert all(len(line) == len(head) for line in cells) and cells[-1][0] == "ilp, compiled"
    assert all(line[0] != "ilp, compiled" for line in memory_table(rows)[1])
    said = "\n".join(sentences(rows))
    assert "compiled rows stand beside dense compiled alike" in said and "ilp, compiled: prefill at" in said
    assert "the vision tower and the localizer before them run eagerly" in said
    failed = {**rows[-1], "method": "fastv", "failed": "not supported", "why": "FastV decides by what layers compute"}
    assert "fastv, compiled: not supported: FastV decides" in "\n".join(sentences([*rows, failed]))


def test_totals_have_an_interval_and_an_overlapped_column(made: tuple[dict[str, Any], str, Path]) -> None:
    head, cells = answer_table(made[0]["rows"])
    assert head.count("least-most") == 2 and "95 %" not in head  # of one pair
    assert "least-most" in prefill_table(made[0]["rows"])[0] and "least-most" in overhead_table(made[0]["overhead"])[0]
    rows = copy.deepcopy(made[0]["rows"])
    for speedup in (answer["speedup"] for row in rows for n, answer in row.get("answers", {}).items() if n != "step"):
        speedup["llm"]["pairs"] = 6
        speedup.pop("localizer")  # as where a localizer is needed and there is none
    wide, lines = answer_table(rows)
    assert wide.count("95 %") == 2 and all(len(line) == len(wide) for line in lines)
    assert "two devices" in "\n".join(sentences(made[0]["rows"]))
    assert head[-1] == "overlapped (max of stages)"
    by_name = {line[0]: line for line in cells}
    assert by_name["ilp"][-1].endswith("x") and by_name["fastv"][-1] == ""  # nothing to overlap
    assert len(cells) == 2 * sum("answers" in row for row in made[0]["rows"])


@pytest.mark.parametrize(
    ("wins", "told"),
    [
        ([], "never in the measured range (4 to 128 new tokens)"),
        ([4, 32, 128], "at all measured lengths (4 to 128 new tokens)"),
        ([32, 128], "from 32 new tokens on"),
        ([4], "up to 4 new tokens"),
        ([4, 128], "with 4 and 128 new tokens only"),
    ],
)
def test_the_crossover_is_told(wins: list[int], told: str) -> None:
    def answer(length: int, pairs: int = 6) -> dict[str, Any]:
        low = 1.01 if length in wins else 0.99  # whatever the median
        return {"speedup": {"localizer": {"measured": 1.02, "interval": [low, 1.1], "pairs": pairs}}}

    answers: dict[str, Any] = {str(length): answer(length) for length in (4, 32, 128)} | {"step": {}}
    row = {"method": "ilp", "compiled": False, "batch": 8, "localizer": {}, "answers": answers}
    said = crossovers([{**row, "budget": 64}, {**row, "method": "fastv", "localizer": None, "budget": 64}])
    assert said == [f"ilp, batch 8, localizer first: the total beats dense (interval above 1) at 64 {told}"]
    few: dict[str, Any] = {"4": answer(4, pairs=5), "step": {}}
    assert crossovers([{**row, "budget": 64, "answers": few}]) == [
        "from how many tokens on the total beats dense takes 6 pairs of answers, here are 5"
    ]
