"""Exported checkpoints: whole folders or none, with a card, gathered weights, and what prompts begin with."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from transformers import AutoConfig, AutoImageProcessor, AutoModelForImageTextToText, AutoTokenizer

from cropl.models import lora
from cropl.models.card import Card
from cropl.models.export import SYSTEM_KEY, write_checkpoint
from cropl.models.vlm import load_vlm
from cropl.parallel import shard
from tests.reference.checkpoints import tiny_llava as tiny_llava
from tests.reference.checkpoints import tiny_localizer as tiny_localizer


@pytest.fixture(params=["llava", "qwen2_vl"])
def checkpoint(request, tiny_llava, tiny_localizer):
    return {"llava": tiny_llava, "qwen2_vl": tiny_localizer}[request.param]


def _weights(folder):
    return AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32).state_dict()


@pytest.mark.parametrize("dtype", [None, "float16"])
def test_an_export_is_what_was_in_memory(checkpoint, dtype, tmp_path):
    vlm = load_vlm(checkpoint, dtype=torch.float32)
    write_checkpoint(vlm, tmp_path / "out", dtype)
    config = json.loads((tmp_path / "out" / "config.json").read_text())
    assert config["dtype"] == (dtype or "float32")
    before, after = vlm.model.state_dict(), _weights(tmp_path / "out")
    assert before.keys() == after.keys()
    wanted = getattr(torch, dtype or "float32")
    assert all(torch.equal(after[name], before[name].to(wanted).float()) for name in before)
    assert all(value.dtype == torch.float32 for value in before.values())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    again = load_vlm(str(tmp_path / "out"))
    assert again.prompt_ids("What word is on the sign?") == vlm.prompt_ids("What word is on the sign?")
    assert vars(vlm.model.generation_config) == vars(again.model.generation_config) | {
        key: value for key, value in vars(vlm.model.generation_config).items() if key.startswith("_")
    }


def test_an_export_that_fails_leaves_the_earlier_one(tiny_llava, tmp_path):
    vlm = load_vlm(tiny_llava)
    folder = tmp_path / "out"
    write_checkpoint(vlm, folder, beside=lambda aside: (aside / "compressor.json").write_text("{}"))
    assert (folder / "compressor.json").is_file()
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    def full(aside):
        assert (aside / "model.safetensors").is_file()
        raise OSError("no space left on device")

    with pytest.raises(OSError, match="no space"):
        write_checkpoint(vlm, folder, "float16", beside=full)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    write_checkpoint(vlm, folder)
    assert not (folder / "compressor.json").exists()  # no file of the earlier one stays beside other weights
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_other_peoples_folders_stay(tiny_llava, tmp_path):
    (tmp_path / "thesis.tex").write_text("...")
    vlm = load_vlm(tiny_llava)
    with pytest.raises(ValueError, match="is no checkpoint: give a new folder"):
        write_checkpoint(vlm, tmp_path)
    with pytest.raises(ValueError, match="is no checkpoint"):
        write_checkpoint(vlm, tmp_path / "thesis.tex")
    assert [path.name for path in tmp_path.iterdir()] == ["thesis.tex"]
    (tmp_path / "empty").mkdir()
    assert (write_checkpoint(vlm, tmp_path / "empty") / "config.json").is_file()


@pytest.mark.parametrize("system", [False, True])
def test_the_system_sentence_is_part_of_an_export(tiny_llava, system, tmp_path):
    write_checkpoint(load_vlm(tiny_llava, system=system), tmp_path / "out")
    assert getattr(AutoConfig.from_pretrained(tmp_path / "out"), SYSTEM_KEY) is system


def test_the_card_says_what_it_is_and_how_it_is_loaded(checkpoint, tmp_path):
    vlm = load_vlm(checkpoint)
    card = Card(
        base="llava-hf/llava-1.5-7b-hf", recipe="model: {lr: 1.0e-05}", data="MixedShards of `a`", steps=120,
        metrics={"val/accuracy": 0.51234, "val/loss": 1.5},
    )  # fmt: skip
    write_checkpoint(vlm, tmp_path / "out", card=card)
    text = (tmp_path / "out" / "README.md").read_text()
    assert text.startswith("---\nlibrary_name: transformers\n") and 'base_model: "llava-hf/llava-1.5-7b-hf"' in text
    for said in ("| val/accuracy | 0.5123 |", "MixedShards of `a`", "steps: 120", "lr: 1.0e-05", "licence and terms"):
        assert said in text
    code = text.split("```python\n")[2].split("```")[0]  # the second block: without cropl
    assert "cropl" not in code
    known: dict = {}
    exec(code.replace("PATH", str(tmp_path / "out")), known)
    assert type(known["model"]) is type(vlm.model)
    again = _weights(tmp_path / "out")
    assert all(torch.equal(value.float(), again[name]) for name, value in known["model"].state_dict().items())
    with_cropl = text.split("```python\n")[1].split("```")[0]
    assert "Localizer" in with_cropl or "load_vlm" in with_cropl


def test_a_folder_is_no_name_on_the_hub(tiny_llava, tmp_path):
    text = (write_checkpoint(load_vlm(tiny_llava), tmp_path / "out") / "README.md").read_text()
    assert "base_model" not in text and f"`{tiny_llava}`" in text


def sharded_export(checkpoint, out, rank, world, store):
    """Shard a model with adapters and trained rows over processes and export it; as it was before, for comparison."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=world)
    try:
        torch.manual_seed(0)
        vlm = load_vlm(checkpoint, dtype=torch.float32, device="cpu")
        lora.add_lora(vlm, rank=2)
        lora.train_rows(vlm, [5, 9])
        for parameter in vlm.model.parameters():
            if parameter.requires_grad:
                torch.nn.init.normal_(parameter)
        if rank == 0:
            whole = {name: value.clone() for name, value in vlm.model.state_dict().items()}
            torch.save(lora.plain_state(vlm.model, whole), f"{out}.pt")
        shard(vlm.model, vlm.shard_units, init_device_mesh("cpu", (world,)), torch.device("cpu"))
        assert all(isinstance(p, torch.distributed.tensor.DTensor) for p in vlm.model.parameters())
        write_checkpoint(vlm, out)
    finally:
        dist.destroy_process_group()


def test_sharded_weights_are_gathered(checkpoint, tmp_path):
    sharded_export(checkpoint, str(tmp_path / "out"), 0, 1, tmp_path / "store")
    wanted, found = torch.load(tmp_path / "out.pt"), _weights(tmp_path / "out")
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in found)


def test_the_system_sentence_is_read_back(tiny_llava, tmp_path):
    write_checkpoint(load_vlm(str(tiny_llava), system=True), tmp_path / "with")
    assert load_vlm(str(tmp_path / "with")).system is True
    assert load_vlm(str(tmp_path / "with"), system=False).system is False
    assert load_vlm(str(tiny_llava)).system is False


@pytest.mark.slow
def test_two_processes_write_one_export(tiny_localizer, tmp_path):
    command = [sys.executable, "-m", "tests.models.test_export", tiny_localizer, str(tmp_path / "out")]
    ranks = [subprocess.Popen([*command, str(rank), "2", str(tmp_path / "store")]) for rank in range(2)]
    assert [rank.wait(timeout=120) for rank in ranks] == [0, 0]
    wanted, found = torch.load(tmp_path / "out.pt"), _weights(tmp_path / "out")
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in found)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "out.pt", "store"]
    assert AutoTokenizer.from_pretrained(tmp_path / "out") and AutoImageProcessor.from_pretrained(tmp_path / "out")


if __name__ == "__main__":
    sharded_export(sys.argv[1], sys.argv[2], int(sys.argv[3]), int(sys.argv[4]), sys.argv[5])
