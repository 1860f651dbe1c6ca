"""`cropl ask` on untrained models: what it prints, what it writes, where the region comes from."""

from __future__ import annotations

import io
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest
from PIL import Image

from cropl.cli import main
from cropl.commands import ask_options


@pytest.fixture(scope="module")
def photo(tmp_path_factory):
    path = tmp_path_factory.mktemp("photo") / "photo.jpg"
    Image.effect_noise((200, 120), 80).convert("RGB").save(path)
    return str(path)


@pytest.fixture
def ask(tiny_llava, photo, capsys):
    def run(*args):
        code = main(["ask", photo, "What color is the star?", "--model", tiny_llava, "--max-new-tokens", "2", *args])
        told = capsys.readouterr()
        assert told.err == "" and code == 0, told.err
        return dict(line.split(None, 1) if " " in line.strip() else (line, "") for line in told.out.splitlines())

    return run


def test_a_given_region(ask, tmp_path):
    told = ask("--region", "2,1,4,3", "-o", str(tmp_path / "overlay.png"))
    assert told["region"].startswith("2,1,4,3") and "3 x 3" in told["region"]
    assert told["tokens"].split()[2] == "144" and "from decoder layer 1 of 3 on" in told["tokens"]
    assert {"answer", "prefill", "timing", "overlay"} <= set(told) and "dense" not in told
    with Image.open(tmp_path / "overlay.png") as picture:
        assert picture.size == (640, 384) and picture.format == "PNG"


def test_a_budget_is_kept_exactly(ask):
    assert ask("--region", "2,1,4,3", "--budget", "20")["tokens"].startswith("20 of 144")
    assert ask("--region", "2,1,4,3", "--budget", "0.25", "--method", "prune")["tokens"].startswith("36 of 144")


def test_all_layers_full_is_dense(ask):
    told = ask("--region", "0,0,0,0", "--layer", "3", "--compare")
    assert told["answer"] == told["dense"] and "100 % of dense" in told["prefill"]
    told = ask("--method", "dense")
    assert "dense" not in told and "of dense" not in told["prefill"]


def test_a_localizer(ask, tiny_localizer):
    assert f"predicted by {tiny_localizer}" in ask("--localizer", tiny_localizer)["region"]


def test_zero_shot_keeps_the_image_when_no_box_is_named(ask, tiny_localizer):
    told = ask("--zero-shot", tiny_localizer)
    assert told["region"].startswith("0,0,7,7") and "named no box" in told["region"]


def test_a_regions_file(ask, tmp_path):
    path = tmp_path / "regions.jsonl"
    path.write_text(json.dumps({"image": "somewhere/photo.jpg", "region": [5, 5, 6, 6]}) + "\n")
    assert ask("--regions", str(path))["region"].startswith("5,5,6,6")


def test_help(capsys):
    assert main(["ask", "--help"]) == 0
    assert "--zero-shot" in capsys.readouterr().out


def test_a_model_with_a_compressor_compresses(tiny_llava, tmp_path, photo, capsys):
    from cropl.models.compressor import Compressor, CompressorConfig
    from cropl.models.loading import load_config

    folder = shutil.copytree(tiny_llava, tmp_path / "plc")
    width = load_config(str(folder)).text_config.hidden_size
    Compressor(CompressorConfig(width, 9, 2, anchors=False, side=12)).save_pretrained(folder)
    args = ["ask", photo, "What color is it?", "--model", str(folder), "--region", "2,1,4,3", "--max-new-tokens", "2"]
    assert main(args) == 0
    told = capsys.readouterr().out
    assert "tokens    11 of 144" in told and "timing    plc" in told
    assert main([*args, "--method", "ilp"]) == 0 and "144 of 144" not in capsys.readouterr().out
    for wrong, says in (
        (["--budget", "4"], "--budget has no effect"),
        (["--layer", "1"], "--layer goes with --method"),
    ):
        assert main([*args, *wrong]) == 2 and says in capsys.readouterr().err
    assert main([*args[:4], tiny_llava, *args[5:], "--method", "plc"]) == 2
    assert "has no compressor.json" in capsys.readouterr().err


@pytest.mark.parametrize("method", ask_options.WITHOUT_REGIONS)
def test_methods_that_choose_by_themselves(ask, method):
    told = ask("--method", method, "--budget", "192", "--model", "testbed:llava")  # six layers, enough for all stages
    assert "region" not in told and told["tokens"].startswith("192 of 576") and "% of dense" in told["prefill"]


def test_they_need_a_budget_and_no_region(tiny_llava, photo, capsys):
    command = ["ask", photo, "What?", "--model", tiny_llava, "--method", "fastv"]
    assert main(command) == 2 and "--method fastv needs --budget" in capsys.readouterr().err
    assert main([*command, "--budget", "9", "--region", "0,0,1,1"]) == 2
    assert "--region has no effect with --method fastv" in capsys.readouterr().err


def test_an_image_from_standard_input(ask, photo, tiny_llava, capsys, monkeypatch):
    told = ask("--region", "2,1,4,3", "--compare")
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(Path(photo).read_bytes())))
    command = ["ask", "-", "What color is the star?", "--model", tiny_llava, "--max-new-tokens", "2"]
    assert main([*command, "--region", "2,1,4,3"]) == 0
    assert f"answer    {told['answer']}" in capsys.readouterr().out
    monkeypatch.setattr("sys.stdin", SimpleNamespace(buffer=io.BytesIO(b"no image")))
    assert main([*command, "--region", "2,1,4,3"]) == 2
