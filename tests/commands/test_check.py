"""`cropl check`: what is missing is named, what is wrong is an error, and every shipped recipe is at least right."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

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
    assert main(["check", "data/viscot_benchmark", *root]) == 1
    assert "benchmark_gqa.json: no rows at 'item'" in capsys.readouterr().out
    turns = [("human", "<image>\nWhat? Please provide the bounding box coordinate."), ("gpt", "[0.1, 0.1, 0.2, 0.2]")]
    turns += [("human", "<image>"), ("gpt", "A dog.")]
    talk = [{"from": speaker, "value": value} for speaker, value in turns]
    row = {"image": ["cot/gqa/1.jpg", "cot/gqa/1.jpg###[1, 2, 3, 4]"], "conversations": talk}
    row |= {"dataset": "gqa", "split": "val"}
    (tmp_path / "benchmark_gqa.json").write_text(json.dumps([row]))
    assert main(["check", "data/viscot_benchmark", *root]) == 1
    lost = f"{tmp_path}/cot: no such folder of images (benchmark_gqa.json names 1 images in it)"
    assert capsys.readouterr().out == f"data/viscot_benchmark: {lost}\n"
    (tmp_path / "cot/gqa").mkdir(parents=True)
    (tmp_path / "cot/gqa/1.jpg").touch()
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


def shards(folder: Path, **changes: Any) -> None:
    with ShardWriter(folder) as writer:
        writer.write(replace(make_sample(0), key=f"{folder.name}-0", source=folder.name, **changes))


def test_what_a_training_recipe_needs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards(tmp_path / "boxes")
    shards(tmp_path / "talks2", boxes=[])
    names = {"boxes": tmp_path / "boxes", "talks": tmp_path / "talks", "model": "testbed:qwen2_vl"}
    path = tmp_path / "training.yaml"
    path.write_text(TRAINING.format(**names))
    assert main(["check", str(path)]) == 1
    found = capsys.readouterr().out.splitlines()
    assert len(found) == 1 and f"data.instruction: {tmp_path}/talks: no such folder of shards" in found[0]
    assert main(["check", str(path), "--data.init_args.instruction", str(tmp_path / "talks2")]) == 0
    path.write_text(TRAINING.format(**{**names, "model": "./nowhere", "talks": tmp_path / "boxes"}))
    assert main(["check", str(path)]) == 1
    assert "model.checkpoint: ./nowhere: no such checkpoint folder" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("changes", "options", "says"),
    [
        ({"answers": []}, [], "samples without an answer: talks (1)"),
        ({}, ["--data.init_args.weights", "{boxe: 1}"], "unknown source 'boxe'; did you mean 'boxes'"),
        ({}, ["--data.init_args.global_batch", "8", "--data.init_args.micro_batch", "3"], "must be a multiple of"),
        ({}, ["--data.init_args.localization_share", "2"], "localization_share 2.0 must lie between 0 and 1"),
        ({}, [], None),
    ],
)
def test_what_a_fit_would_refuse(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], changes: dict, options: list[str], says: str | None
) -> None:
    shards(tmp_path / "boxes")
    shards(tmp_path / "talks", **changes)
    path = tmp_path / "training.yaml"
    path.write_text(TRAINING.format(boxes=tmp_path / "boxes", talks=tmp_path / "talks", model="testbed:qwen2_vl"))
    assert main(["check", str(path), *options]) == (says is not None)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(f"{path}: data: ") and says in line if says else line == f"{path}: ready"


def test_a_benchmark_is_checked_as_test_does(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shards(tmp_path / "asked", answers=[])
    shards(tmp_path / "answered")
    path = tmp_path / "test.yaml"
    for name, code in (("asked", 1), ("answered", 0)):
        path.write_text(
            "model: {class_path: cropl.modules.localizer.LocalizerModule, "
            "init_args: {checkpoint: 'testbed:qwen2_vl'}}\n"
            "data: {class_path: cropl.datamodules.benchmark.BenchmarkShards, "
            f"init_args: {{test_dir: {tmp_path / name}}}}}"
        )
        assert main(["check", str(path)]) == code
    first, second = capsys.readouterr().out.splitlines()
    assert "data: samples without an answer: asked (1)" in first and second.endswith(": ready")


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


def test_what_fetches_or_writes_what_is_missing_is_named(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["check", "compressor/projector_only"]) == 1
    told = capsys.readouterr().out
    assert (
        "data.localization: shards/viscot-33k: no such folder of shards; `cropl shards build -c data/viscot_33k`"
        in told
    )
    assert "data.val_dir: shards/viscot-benchmark-textvqa" in told and "-c data/viscot_benchmark`" in told
    assert "model.checkpoint: llava-hf/llava-1.5-7b-hf is not in the local cache" in told
