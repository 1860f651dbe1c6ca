"""The recipe of VisionZip‡ for a real model: right, of the estimated size, and able to train."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from cropl import recipe
from cropl.cli import main
from cropl.models.vlm import load_vlm
from tests.recipes import witness

NAME = "visionzip/llava_1_5_7b"


def test_it_is_right_and_fits_where_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    """Nothing is there but the recipe: its shards are named as missing, and its model is only a shape."""
    assert recipe.names("visionzip/") == [NAME]
    assert main(["check", NAME]) == 1
    lines = capsys.readouterr().out.splitlines()
    missing = [line for line in lines if line.startswith(f"{NAME}: ")]
    assert len(missing) == 2 and all("no such folder of shards" in line for line in missing)
    table = [line for line in lines if " x " in line and " GB " in line]
    assert len(table) == 3 and all(line.rstrip().endswith("  fits") for line in table)
    head = recipe.find(NAME).read_text(encoding="utf-8").partition("\nmodel:")[0]
    words = [word.strip("`.,;)") for word in head.split()]
    named = [word for before, word in zip(words, words[1:]) if before == "-c" or word.startswith("data/")]
    assert len(named) > 5 and all(recipe.find(word) for word in named)


@pytest.mark.slow
def test_two_steps(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    flags = {
        "model.checkpoint": "testbed:llava", "data.train_dir": shards / "boxes", "data.val_dir": shards / "val",
        "data.global_batch": 4, "data.micro_batch": 2, "data.eval_batch": 3, "data.num_workers": 0,
        "trainer.max_steps": 2, "trainer.val_check_interval": 4,
    }  # fmt: skip
    given = [part for name, value in flags.items() for part in (f"--{name}", str(value))]
    assert main(["fit", "-c", NAME, *given, "--trainer.callbacks+=tests.recipes.witness.Witness"]) == 0
    assert len(witness.seen.losses) == 2 and all(math.isfinite(loss) for loss in witness.seen.losses)
    projector = load_vlm(str(tmp_path / "runs" / NAME / "export")).projector
    trained = sum(p.numel() for p in projector.parameters())
    assert witness.seen.gradients == 4 * trained
