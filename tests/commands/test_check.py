"""`cropl check`: what is missing is named, what is wrong is an error, and every shipped recipe is at least right."""

from pathlib import Path

import pytest

from cropl import recipe
from cropl.cli import main
from cropl.data.writer import ShardWriter
from tests.data.conftest import make_sample


def test_what_a_data_recipe_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = ["--vars.root", str(tmp_path), "--vars.name", "gqa"]
    assert main(["check", "data/viscot_benchmark", *root]) == 1
    assert f"{tmp_path}/benchmark_gqa.json: no such annotation file" in capsys.readouterr().out
    (tmp_path / "benchmark_gqa.json").write_text("[]")
    assert main(["check", "data/viscot_benchmark", *root]) == 0
    assert capsys.readouterr().out == "data/viscot_benchmark: ready\n"


TRAINING = """
model:
  class_path: cropl.modules.localizer.LocalizerModule
  init_args: {{checkpoint: "{model}"}}
data:
  class_path: cropl.datamodules.mixed.MixedShards
  init_args: {{localization: ["{boxes}"], instruction: "{talks}"}}
"""


def test_what_a_training_recipe_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ShardWriter(tmp_path / "boxes") as writer:
        writer.write(make_sample(0))
    names = {"boxes": tmp_path / "boxes", "talks": tmp_path / "talks", "model": "testbed:qwen2_vl"}
    path = tmp_path / "training.yaml"
    path.write_text(TRAINING.format(**names))
    assert main(["check", str(path)]) == 1
    found = capsys.readouterr().out.splitlines()
    assert len(found) == 1 and f"data.instruction: {tmp_path}/talks/manifest.json: no manifest" in found[0]
    assert main(["check", str(path), "--data.init_args.instruction", str(tmp_path / "boxes")]) == 0
    path.write_text(TRAINING.format(**{**names, "model": "./nowhere", "talks": tmp_path / "boxes"}))
    assert main(["check", str(path)]) == 1
    assert "model.checkpoint: ./nowhere: no such checkpoint folder" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("out: x\nsources: [{class_path: cropl.data.readers.gqa.Gqua}]", "Gqua"),
        ("out: x\nsources: [{class_path: cropl.data.readers.gqa.Gqa, init_args: {fil: x}}]", "did you mean 'file'"),
        ("out: x\nsources: [{class_path: cropl.data.sample.Sample}]", "class_path|missing"),
        ("out: x\nsources: [{class_path: pathlib.Path}]", "is no reader"),
        ("out: x\nsource: []\nsources: [1]", "did you mean 'sources'"),
        ("sources: [1]", "'out' is missing"),
        ("out: x\nsources: [1]\nmax_bad: 2", "share from 0 to 1"),
        ("out: x\nsources: [1]\nresize: big", "resize 'big'"),
        ("out: x\nsources: [1]\nprefix: a/b", "prefix"),
        ("out: ${nowhere}\nsources: [1]", "nowhere"),
        ("vars: {}", "empty recipe"),
    ],
)
def test_wrong_recipes_are_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str, message: str
) -> None:
    path = tmp_path / "wrong.yaml"
    path.write_text(text)
    assert main(["check", str(path)]) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert len(error) == 1 and error[0].startswith("cropl: error: ")
    assert any(part in error[0] for part in message.split("|"))


@pytest.mark.parametrize("name", recipe.names())
def test_every_recipe_is_right(name: str) -> None:
    """Files may be missing, keys and classes may not."""
    assert main(["check", name]) in (0, 1)
    assert recipe.describe(name)


def test_check_names_what_it_needs(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["check"]) == 2 and main(["check", "--help"]) == 0
    assert main(["check", "--vars.root", "x"]) == 2
    assert main(["check", "data/gqua"]) == 2
    assert "did you mean 'data/gqa'" in capsys.readouterr().err
