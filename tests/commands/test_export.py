"""`cropl export`: from a training's checkpoint to a folder that loads with the trained weights."""

from __future__ import annotations

import json
from hashlib import sha256

import lightning as L
import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch.utils.data import DataLoader

from cropl.callbacks import complete
from cropl.callbacks.checkpoint import Checkpoint
from cropl.callbacks.ema import EMA
from cropl.callbacks.export import Export
from cropl.callbacks.identity import settings_of
from cropl.cli import main
from cropl.commands.export import find
from cropl.models.vlm import load_vlm
from cropl.modules.instruction import InstructionModule
from cropl.parallel import METADATA
from cropl.testbed.samples import samples
from tests.reference.checkpoints import tiny_llava as tiny_llava
from tests.reference.checkpoints import tiny_localizer as tiny_localizer


@pytest.fixture(scope="module")
def trained(tiny_llava, tmp_path_factory):
    """(module after a step, its checkpoint with the recipe beside it)."""
    folder = tmp_path_factory.mktemp("run")
    module = InstructionModule(tiny_llava, lr=0.01)
    trainer = L.Trainer(
        accelerator="cpu", max_steps=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    trainer.fit(module, DataLoader(samples("train", 2), 2, collate_fn=module.collate))
    trainer.save_checkpoint(folder / "checkpoints" / "last.ckpt")
    arguments = {"checkpoint": tiny_llava, "lr": 0.01}
    model = {"class_path": "cropl.modules.instruction.InstructionModule", "init_args": arguments}
    (folder / "config.yaml").write_text(yaml.safe_dump({"model": model, "trainer": {"devices": 8}}))
    return module, folder / "checkpoints" / "last.ckpt"


def test_a_checkpoint_becomes_a_folder(trained, tmp_path, capsys):
    module, checkpoint = trained
    assert main(["export", str(checkpoint), str(tmp_path / "out")]) == 0
    assert str(tmp_path / "out") in capsys.readouterr().out
    wanted, found = module.model.state_dict(), load_vlm(str(tmp_path / "out"), dtype=torch.float32).model.state_dict()
    assert found.keys() == wanted.keys() and all(torch.equal(found[name], wanted[name]) for name in wanted)
    assert not torch.equal(wanted["lm_head.weight"], load_vlm(module.checkpoint).model.state_dict()["lm_head.weight"])


def test_averages_are_written_where_there_are_some(trained, tmp_path):
    _, checkpoint = trained
    stored = torch.load(checkpoint, weights_only=True)
    name = next(name for name in stored["state_dict"] if name.endswith("lm_head.weight"))
    stored["callbacks"]["EMA{'decay': 0.9}"] = {"averages": {name: torch.zeros_like(stored["state_dict"][name])}}
    torch.save(stored, tmp_path / "averaged.ckpt")
    recipe = str(checkpoint.parent.parent / "config.yaml")
    args = [str(tmp_path / "averaged.ckpt"), str(tmp_path / "out"), "-c", recipe, "--dtype", "bfloat16"]
    assert main(["export", *args, "--model.init_args.lr", "0.5"]) == 0
    found = load_vlm(str(tmp_path / "out"), dtype="auto").model.state_dict()["lm_head.weight"]
    assert not found.any() and found.dtype == torch.bfloat16


@pytest.mark.parametrize(
    "base, dtype, ema, written",
    [
        ("tiny_localizer", "float32", True, None),  # its head is tied to the embeddings
        ("tiny_llava", "bfloat16", False, "float32"),
        ("tiny_llava", "bfloat16", False, "float16"),
        ("tiny_llava", "bfloat16", True, None),
    ],
)
def test_it_writes_what_the_callback_writes(base, dtype, ema, written, tmp_path, request):
    """The float32 weights that trained, or their averages, whatever the base was loaded in."""
    base = request.getfixturevalue(base)
    module = InstructionModule(base, lr=0.01, dtype=dtype)
    trainer = L.Trainer(
        accelerator="cpu", max_steps=2, logger=False, enable_progress_bar=False, enable_model_summary=False,
        precision="32-true" if dtype == "float32" else "bf16-mixed",
        callbacks=[*[EMA(0.9)] * ema, Export(str(tmp_path / "callback"), written), Checkpoint(str(tmp_path / "steps"))],
    )  # fmt: skip
    trainer.fit(module, DataLoader(samples("train", 4), 2, collate_fn=module.collate))
    arguments = {"checkpoint": base, "lr": 0.01, "dtype": dtype}
    model = {"class_path": "cropl.modules.instruction.InstructionModule", "init_args": arguments}
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"model": model}))
    flags = ["--dtype", written] if written else []
    assert main(["export", str(tmp_path / "steps"), str(tmp_path / "command"), *flags]) == 0
    told, found = (load_file(tmp_path / name / "model.safetensors") for name in ("callback", "command"))
    assert told.keys() == found.keys()
    assert all(told[name].dtype == found[name].dtype and torch.equal(told[name], found[name]) for name in told)
    assert (tmp_path / "callback/config.json").read_text() == (tmp_path / "command/config.json").read_text()
    trained = {name: p for name, p in module.model.named_parameters() if p.requires_grad}  # EMA leaves the averages
    again = load_vlm(str(tmp_path / "command"), dtype=torch.float32).model.state_dict()
    assert all(
        torch.equal(again[name], p.to(getattr(torch, written or "float32")).float()) for name, p in trained.items()
    )
    assert all(p.dtype == torch.float32 for p in trained.values())


def test_the_recipe_of_another_training_is_refused(trained, tmp_path, capsys):
    """Its options need not change any shape to change what the export says of itself or computes."""
    _, checkpoint = trained
    beside = checkpoint.parent.parent / "config.yaml"
    (tmp_path / "config.yaml").write_text(beside.read_text())
    recipe = yaml.safe_load(beside.read_text())
    stored = torch.load(checkpoint, weights_only=True)
    stored["cropl"] = {"settings": settings_of(recipe), "base": {}}
    torch.save(stored, tmp_path / "last.ckpt")
    assert main(["export", str(tmp_path / "last.ckpt"), str(tmp_path / "same")]) == 0
    recipe["model"]["init_args"]["model_options"] = {"system": True}
    stored["cropl"]["settings"] = settings_of(recipe)
    torch.save(stored, tmp_path / "last.ckpt")
    assert main(["export", str(tmp_path / "last.ckpt"), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert "is not of the training that wrote this checkpoint" in error and "model_options.system: True in" in error
    (tmp_path / "own.yaml").write_text(yaml.safe_dump(recipe))
    named = ["-c", str(tmp_path / "own.yaml")]
    assert main(["export", str(tmp_path / "last.ckpt"), str(tmp_path / "out"), *named]) == 0
    stored["cropl"]["base"] = {"name": "other", "sha256": "0" * 64}
    torch.save(stored, tmp_path / "last.ckpt")
    assert main(["export", str(tmp_path / "last.ckpt"), str(tmp_path / "out"), *named]) == 2
    assert "was trained from another base: other" in capsys.readouterr().err


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda c: [str(c), "{out}", "--dtype", "int8"], "dtype 'int8' must be one of"),
        (lambda c: [str(c) + "x", "{out}"], "no such checkpoint"),
        (lambda c: [str(c.parent), "{out}"], "no checkpoint lies in this folder"),
        (lambda c: [str(c), str(c.parent)], "is no checkpoint: give a new folder"),
        (lambda c: [str(c.parent.parent / "config.yaml"), "{out}"], "not a training's checkpoint"),
        (lambda c: [str(c), "{out}", "-c", "data/pope"], "is a data recipe"),
        (lambda c: [str(c), "{out}", "--model.init_args.lrr", "1"], "lrr"),
        (lambda c: [str(c)], "arguments are required: out"),
    ],
)
def test_mistakes_are_one_line(trained, tmp_path, capsys, change, message):
    args = [part.replace("{out}", str(tmp_path / "out")) for part in change(trained[1])]
    assert main(["export", *args]) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.startswith("cropl: error: ") and not (tmp_path / "out").exists()


def test_a_checkpoint_of_another_model_is_told(trained, tmp_path, capsys):
    _, checkpoint = trained
    stored = torch.load(checkpoint, weights_only=True)
    stored["state_dict"] = {name + "x": value for name, value in stored["state_dict"].items()}
    torch.save(stored, checkpoint.parent / "other.ckpt")
    assert main(["export", str(checkpoint.parent / "other.ckpt"), str(tmp_path / "out")]) == 2
    assert "does not fit this InstructionModule" in capsys.readouterr().err


def test_without_a_recipe_it_asks_for_one(trained, tmp_path, capsys):
    deep = tmp_path / "a" / "b" / "c" / "last.ckpt"
    deep.parent.mkdir(parents=True)
    deep.write_bytes(trained[1].read_bytes())
    assert main(["export", str(deep), str(tmp_path / "out")]) == 2
    assert "name the recipe of the training with -c" in capsys.readouterr().err


def test_a_run_stands_for_its_newest_checkpoint(tmp_path):
    """Steps are folders that Checkpoint writes; what is half written, damaged or sharded is not taken."""
    for number, name in enumerate(["step-2", "step-4", "step-10"]):
        folder = tmp_path / "checkpoints" / name
        folder.mkdir(parents=True)
        (folder / complete.WHOLE).write_text(name)
        files = {complete.WHOLE: {"bytes": len(name), "sha256": sha256(name.encode()).hexdigest()}}
        (folder / complete.MARKER).write_text(json.dumps({"number": number, "files": files}))
    newest = tmp_path / "checkpoints" / "step-10" / complete.WHOLE
    assert find(tmp_path) == find(tmp_path / "checkpoints") == find(newest.parent) == find(newest) == newest
    newest.write_text("step-11")
    with pytest.raises(ValueError, match="step-10 is damaged"):
        find(newest.parent)
    newest.unlink()
    assert find(tmp_path).read_text() == "step-4"
    (newest.parent / complete.MARKER).unlink()
    (newest.parent / METADATA).touch()
    with pytest.raises(ValueError, match="cropl consolidate .*step-10"):
        find(newest.parent)


def test_a_run_whose_checkpoints_are_all_damaged(tmp_path, capsys):
    (tmp_path / "run/checkpoints/step-10").mkdir(parents=True)
    (tmp_path / "run/checkpoints/step-10" / complete.WHOLE).write_text("cut off")
    assert main(["export", str(tmp_path / "run"), str(tmp_path / "out")]) == 2
    error = capsys.readouterr().err
    assert f"no checkpoint in {tmp_path / 'run/checkpoints'} is complete, and none can be exported: give" in error
    assert "--ckpt_path" not in error, "an option that it does not have"
