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
from cropl.bench import prune_shapes
from cropl.bench.prune_table import growth, markdown, prefill_table, sentences
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
    assert said[0] == (
        "ilp: prefill at 50 % to 50 % of its ideal speed-up, and at 80 % to 80 % of unpatched layers of its lengths"
    )
    assert said[1] == "fastv: prefill at 25 % to 25 % of its ideal speed-up"
    assert growth(rows) == [(4, 2.0), (8, 2.0), (12, 2.0)]
    head, cells = prefill_table([*rows, {**rows[0], "failed": "out of memory"}])
    assert all(len(line) == len(head) for line in cells) and "out of memory" in cells[-1]
    lines = markdown((head, cells)).splitlines()
    assert len(lines) == len(cells) + 2 and {line.count("|") for line in lines} == {len(head) + 1}


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
        (["--budgets", "[regions]"], "fastv has no regions"),
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
    from cropl.bench.prune_plan import Plan
    from cropl.commands.measurement import configured

    config = configured("prune", ["-c", "bench/prune_gpu"], ("pairs", "threads"), optional="threads")
    assert config["device"] == "cuda" and config["pairs"] >= 20 and config["batch"] == [1, 8, 32]
    plan = Plan(
        config["methods"], config["budgets"], config["batch"], config["new_tokens"], 20, 3, config["ragged"],
        config["growth"],
    )  # fmt: skip
    for name in config["shapes"]:
        assert plan.steps(prune_shapes.shape_of(name)) == 3 * len(config["methods"]) * 3 + len(config["ragged"])
