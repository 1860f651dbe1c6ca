"""A package outside cropl takes part by class path alone: its model family, its pruning method and its benchmark."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import save_file

from cropl.cli import main
from cropl.models.vlm import family, load_vlm
from cropl.testbed.samples import samples
from cropl.testbed.weights import resolve

PACKAGE = Path(__file__).parent / "package"
ROOT = Path(__file__).parents[2]
ARMS = ["dense", "checkerboard-k1", "ilp-gt-k1"]


def write_receipts(folder: Path, count: int) -> Path:
    """The testbed's questions about text, as the package's data is published; the file of annotations."""
    (folder / "images").mkdir(parents=True)
    lines = []
    for sample in [one for one in samples("test", 8 * count) if one.kind == "text" and one.boxes][:count]:
        sample.picture().save(folder / "images" / f"{sample.key}.png")
        lines.append({"id": sample.key, "file": f"{sample.key}.png", "question": sample.question,
                      "answer": sample.answers[0], "fields": [list(box) for box in sample.boxes]})  # fmt: skip
    assert len(lines) == count
    (folder / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder / "test.jsonl"


def write_model(folder: Path) -> Path:
    """The testbed's LLaVA as a checkpoint of the package's own model type.

    Its weights are named as the model has them: other names `transformers` translates for model types that it knows.
    """
    shutil.copytree(resolve("testbed:llava"), folder)
    weights = load_vlm("testbed:llava", device="cpu").model.state_dict()
    save_file({name: weight.clone() for name, weight in weights.items()}, folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": "receipt_llava", "architectures": ["ReceiptModel"]}
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def arguments(kit: Path, folder: Path, count: int) -> list[str]:
    """Of `cropl evaluate` for the package's suite."""
    write_receipts(folder / "data", count)
    model = write_model(folder / "model")
    return ["-c", str(kit / "suite.yaml"), "--vars.kit", str(kit), "--vars.root", str(folder / "data"),
            "--model", str(model), "--out", str(folder / "run")]  # fmt: skip


def check_run(folder: Path, count: int) -> dict[str, Any]:
    """What the suite of the package found; its rows by their arms."""
    results = json.loads((folder / "run" / "results.json").read_text())
    rows = {row["arm"]: row for row in results["rows"]}
    assert list(rows) == ARMS and [line["arm"] for line in results["suite"]] == ARMS
    for row in rows.values():
        assert (row["benchmark"], row["scorer"]) == ("receipts", "receipts_kit.benchmark.Receipts")
        assert (row["n"], row["primary"], row["family"]) == (count, "words", "receipts_kit.family.ReceiptVLM")
    assert rows["dense"]["tokens_kept_mean"] == 576 and rows["checkerboard-k1"]["tokens_kept_mean"] == 288
    assert rows["ilp-gt-k1"]["tokens_kept_mean"] < 288
    assert rows["dense"]["score"] > 60, "the tiny LLaVA reads these signs"
    return rows


def test_a_suite_names_classes_outside(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(PACKAGE / "src"))
    kit = PACKAGE / "src" / "receipts_kit"
    asked = arguments(kit, tmp_path, 4)
    assert main(["evaluate", *asked]) == 0
    check_run(tmp_path, 4)
    assert main(["check", str(kit / "suite.yaml"), *asked[2:]]) == 0
    assert capsys.readouterr().out.endswith("suite.yaml: ready\n")


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("receipts_kit.nothing.ReceiptVLM", "class_path 'receipts_kit.nothing.ReceiptVLM' cannot be imported"),
        ("receipts_kit.method.Checkerboard", "is no VLM: name a subclass of cropl.models.vlm.VLM"),
        ("[1]", "study: family [1] must be text or null"),
    ],
)
def test_a_wrong_family_is_told_before_anything_is_read(
    name: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.syspath_prepend(str(PACKAGE / "src"))
    kit = PACKAGE / "src" / "receipts_kit"
    common = ["-c", str(kit / "suite.yaml"), "--vars.kit", str(kit), "--vars.root", str(tmp_path), "--family", name]
    assert main(["evaluate", *common, "--out", str(tmp_path / "run")]) == 2
    assert said in capsys.readouterr().err


def test_a_family_outside_is_none_of_the_package() -> None:
    with pytest.raises(ValueError, match="model type 'receipt_llava' is not supported"):
        family("receipt_llava")


@pytest.mark.slow
def test_an_installed_package_takes_part(tmp_path: Path) -> None:
    """Installed by pip, in a process that knows nothing of this repository's tests."""
    site = tmp_path / "site"
    shutil.copytree(PACKAGE, tmp_path / "source", ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build"))
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "install", "--no-deps", "--no-index"]
    _run(*pip, "--no-build-isolation", "--target", str(site), str(tmp_path / "source"))
    kit = site / "receipts_kit"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(site), str(ROOT)])}

    def cropl(*arguments: str) -> str:
        return _run(sys.executable, "-m", "cropl", *arguments, cwd=tmp_path, env=environment)

    asked = arguments(kit, tmp_path, 12)
    shown = cropl("evaluate", *asked)
    rows = check_run(tmp_path, 12)
    assert "checkerboard" in shown

    annotations = str(tmp_path / "data" / "test.jsonl")
    for arm in ARMS:
        answers = tmp_path / "run" / "receipts" / "submissions" / arm / "receipts.json"
        stored = tmp_path / f"{arm}.json"
        cropl("score", "receipts_kit.benchmark.Receipts", "--predictions", str(answers), "--annotations", annotations,
              "--out", str(stored))  # fmt: skip
        assert json.loads(stored.read_text())["scores"]["words"] == pytest.approx(rows[arm]["score"])

    cropl("report", str(tmp_path / "run"), "-o", str(tmp_path / "report"))
    table = (tmp_path / "report" / "run.md").read_text()
    assert "receipts" in table.lower() and "checkerboard" in table.lower()


def _run(*command: str, **options: Any) -> str:
    done = subprocess.run(command, capture_output=True, text=True, **options)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout
