"""Every training recipe of a real model: right, of the estimated size, and able to train.

The trainings change nothing but the model's path, the folders of data and the sizes of batches.
"""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import pytest
import yaml

from cropl import recipe
from cropl.cli import main
from cropl.commands import check_memory
from cropl.models.localizer import Localizer
from cropl.models.memory import estimate
from cropl.models.vlm import load_vlm
from cropl.pruning.plc import PLC
from tests.recipes import witness

FITS = {
    "localizer/qwen2_vl_2b": (False, True, True),
    "localizer/qwen2_vl_2b_lora": (True, True, True),
    "compressor/llava_1_5_7b": (False, False, True),
    "compressor/llava_1_5_7b_no_anchor": (False, False, True),
    "compressor/llava_1_5_13b": (False, False, True),
    "compressor/llava_1_5_7b_lora": (True, True, True),
    "compressor/projector_only": (True, True, True),
}
"""On a GPU of 24 GB, one of 80 GB, and eight of 80 GB, as the recipes say at their top."""
NAMES = list(FITS)
QUICK = {"localizer/qwen2_vl_2b_lora", "compressor/llava_1_5_7b", "compressor/llava_1_5_7b_lora"}
TRAININGS = [name if name in QUICK else pytest.param(name, marks=pytest.mark.slow) for name in NAMES]


def test_no_training_is_left_out() -> None:
    names = [*recipe.names("localizer/"), *recipe.names("compressor/")]
    trained = [name for name in names if "max_epochs" in recipe.find(name).read_text(encoding="utf-8")]
    assert sorted(trained) == sorted(NAMES)


@pytest.mark.parametrize("name", recipe.names())
def test_the_first_line_of_a_recipe_is_whole(name: str) -> None:
    """`cropl ls` shows it and no more."""
    assert recipe.describe(name).endswith((".", "?"))


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_is_right_and_fits_where_it_says(name: str, capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is there but the recipe: its shards are named as missing, and its model is only a shape."""
    assert main(["check", name]) == 1
    lines = capsys.readouterr().out.splitlines()
    missing = [line for line in lines if line.startswith(f"{name}: ")]
    assert len(missing) == 3 and all("no such folder of shards" in line for line in missing)
    table = [line for line in lines if " x " in line and " GB " in line]
    assert [line.rstrip().endswith("  fits") for line in table] == list(FITS[name])


@pytest.mark.parametrize("name", NAMES)
def test_a_recipe_says_what_it_is_and_needs(name: str) -> None:
    """Each begins with what it is, what it needs, how it is launched, and one override; what it names is there."""
    text = recipe.find(name).read_text(encoding="utf-8")
    head = text.partition("\nmodel:")[0]
    assert recipe.describe(name) and f"cropl check {name}" in head
    for part in (
        "# Needs",
        "#   model ",
        "#   data ",
        "#   GPU",
        "#   time ",
        "torchrun --nnodes",
        "srun ",
        "override: ",
    ):
        assert part in head, part
    words = [word.strip("`.,;)") for word in head.split()]
    for before, word in zip(words, words[1:]):
        if before == "-c" or word.startswith("data/"):
            assert recipe.find(word)


def fit(name: str, shards: Path, *more: str) -> int:
    """Two steps of a recipe on the testbed's model of the same family."""
    model = "testbed:qwen2_vl" if name.startswith("localizer") else "testbed:llava"
    return main(
        [
            "fit", "-c", name, *more, "--model.checkpoint", model,
            "--data.localization", str(shards / "boxes"), "--data.instruction", str(shards / "talks"),
            "--data.val_dir", str(shards / "val"), "--data.global_batch", "4", "--data.micro_batch", "2",
            "--data.eval_batch", "3", "--data.num_workers", "0", "--trainer.max_steps", "2",
            "--trainer.callbacks+=tests.recipes.witness.Witness",
        ]
    )  # fmt: skip


@pytest.mark.parametrize("name", TRAININGS)
def test_two_steps(name: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert fit(name, shards, "--trainer.val_check_interval", "4") == 0
    run = tmp_path / "runs" / name
    seen = witness.seen
    assert len(seen.losses) == 2 and all(math.isfinite(loss) for loss in seen.losses)
    assert [path.name for path in (run / "checkpoints").glob("step-*")] == ["step-000002"]
    with open(run / "metrics.csv", encoding="utf-8") as file:
        logged = {key for row in csv.DictReader(file) for key, value in row.items() if value}
    assert ("val/mean_recall" if name.startswith("localizer") else "val/accuracy") in logged
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    assert (seen.weights, seen.gradients, seen.optimizer) == _estimated(config)
    export = run / "export"
    if name.startswith("localizer"):
        assert Localizer.from_pretrained(str(export))
    else:
        assert load_vlm(str(export)) and PLC.from_pretrained(export)


def _estimated(config: dict[str, Any]) -> tuple[int, int, int]:
    """Bytes of weights, gradients and moments, from the shapes alone."""
    kind, arguments = recipe.load_object(config["model"]["class_path"]), config["model"]["init_args"]
    vlm, further = check_memory.prepared(kind, arguments)
    memory = estimate(vlm, further, check_memory.batch_of(vlm, further, arguments, 2))
    return memory.weights, memory.gradients, memory.optimizer


@pytest.mark.slow
@pytest.mark.parametrize("name", ["localizer/qwen2_vl_2b", "compressor/llava_1_5_7b"])
def test_two_steps_sharded(name: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the overlay that the recipe is launched with; on one process, and on a CPU."""
    monkeypatch.chdir(tmp_path)
    assert fit(name, shards, "-c", "trainer/fsdp2", "--trainer.accelerator", "cpu", "--trainer.devices", "1") == 0
    assert len(witness.seen.losses) == 2
    assert [path.name for path in (tmp_path / "runs" / name / "checkpoints").glob("step-*")] == ["step-000002"]


TESTBED = [name for name in recipe.names("testbed/") if "max_steps" in recipe.find(name).read_text(encoding="utf-8")]


@pytest.mark.slow
@pytest.mark.parametrize("name", TESTBED)
def test_two_steps_of_the_testbed(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The shipped checkpoint of the same family stands for one that another recipe trains."""
    monkeypatch.chdir(tmp_path)
    text = recipe.find(name).read_text(encoding="utf-8")
    model = "testbed:qwen2_vl" if "qwen2_vl" in text else "testbed:llava"
    places = ["--model.checkpoint", model, "--data.checkpoint", model]
    sizes = ["--data.scenes", "8", "--data.val_scenes", "2", "--data.batch_size", "2"]
    steps = ["--trainer.max_steps", "2", "--trainer.val_check_interval", "2"]
    assert main(["fit", "-c", name, *places, *sizes, *steps]) == 0
    assert list((tmp_path / "runs").rglob("metrics.csv"))
