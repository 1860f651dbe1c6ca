"""What sharded training is asked for and made of, without starting processes."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
from lightning.pytorch.strategies import StrategyRegistry
from torch import nn
from torch.utils.data import DataLoader

from cropl import recipe
from cropl.cli import main
from cropl.models.vlm import load_vlm
from cropl.modules.instruction import InstructionModule
from cropl.parallel import FSDP2, consolidate, named, numbered, stored_weights
from cropl.testbed.samples import samples
from tests.reference.checkpoints import build_llava, build_qwen2_vl

ROOT = Path(__file__).resolve().parent.parent
QUIET = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}


@pytest.fixture(scope="module")
def llava(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_llava(tmp_path_factory.mktemp("llava"), layers=2, width=32))


class TwoGroups(nn.Module):
    """A frozen part, and two groups of which the second comes first in the module."""

    def __init__(self) -> None:
        super().__init__()
        self.tower = nn.Linear(2, 2).requires_grad_(False)
        self.norm, self.head = nn.LayerNorm(2), nn.Linear(2, 3, bias=False)

    def optimizer(self) -> torch.optim.Optimizer:
        groups = [{"params": [self.head.weight], "weight_decay": 0.1}, {"params": list(self.norm.parameters())}]
        return torch.optim.AdamW(groups)


def test_an_optimizer_state_by_names_and_back() -> None:
    module = TwoGroups()
    optimizer = module.optimizer()
    module.head(module.norm(torch.randn(4, 2))).square().sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    known = named(state, optimizer, module)
    assert [group["params"] for group in known["param_groups"]] == [["head.weight"], ["norm.weight", "norm.bias"]]
    assert known["state"]["head.weight"]["exp_avg"].shape == (3, 2)
    back = numbered(known)
    assert back["param_groups"] == state["param_groups"] and back["state"].keys() == state["state"].keys()
    # Of numbers their order in the groups counts: Lightning saves places among all parameters of the module.
    places = {"state": {4: state["state"][0], 2: state["state"][1], 3: state["state"][2]}, "param_groups": [
        {**state["param_groups"][0], "params": [4]}, {**state["param_groups"][1], "params": [2, 3]},
    ]}  # fmt: skip
    assert named(places, optimizer, module)["state"].keys() == known["state"].keys()
    assert named(places, optimizer, module)["state"]["head.weight"] is known["state"]["head.weight"]


def test_fsdp2_is_registered_and_computes_in_what_it_is_told() -> None:
    assert StrategyRegistry.get("fsdp2").compute_dtype is torch.float32
    assert FSDP2("bfloat16").compute_dtype is torch.bfloat16
    with pytest.raises(ValueError, match="compute_dtype 'float16': must be one of float32, bfloat16"):
        FSDP2("float16")  # type: ignore[arg-type]


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true"])
def test_precision_is_the_strategys(precision: str) -> None:
    trainer = L.Trainer(accelerator="cpu", devices=1, strategy="fsdp2", precision=precision, **QUIET)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=f"'{precision}' does not go with fsdp2.*compute_dtype to bfloat16"):
        trainer.strategy.setup_environment()


def test_families_say_what_is_gathered_together(llava: str, tmp_path: Path) -> None:
    for checkpoint in (llava, str(build_qwen2_vl(tmp_path, layers=2, width=64))):
        vlm = load_vlm(checkpoint)
        assert [type(unit).__name__.endswith("DecoderLayer") for unit in vlm.shard_units] == [True, True]


@pytest.mark.parametrize("files", [[], ["meta.pt"], ["__0_0.distcp"]])
def test_only_sharded_checkpoints_are_made_one(tmp_path: Path, files: list[str], capsys: pytest.CaptureFixture) -> None:
    folder = tmp_path / "step-1"
    folder.mkdir()
    for name in files:
        (folder / name).touch()
    if "meta.pt" not in files:
        with pytest.raises(ValueError, match="not the folder of a complete sharded checkpoint"):
            consolidate(folder)
    assert main(["consolidate", str(folder)]) == 2
    assert "not a sharded checkpoint that was written to its end" in capsys.readouterr().err
    assert main(["consolidate", str(tmp_path / "missing")]) == 2
    (folder / "checkpoint.ckpt").touch()
    assert main(["consolidate", str(folder)]) == 2
    assert "is one file already" in capsys.readouterr().err
    (tmp_path / "step-1.full.ckpt").touch()
    assert main(["consolidate", str(folder)]) == 2 and "exists" in capsys.readouterr().err


def test_weights_of_a_file_are_known_by_shape(tmp_path: Path) -> None:
    torch.save({"state_dict": {"head.weight": torch.zeros(3, 2)}}, tmp_path / "last.ckpt")
    assert stored_weights(tmp_path / "last.ckpt") == {"head.weight": (3, 2)}


def trainer(**options: object) -> L.Trainer:
    return L.Trainer(accelerator="cpu", max_steps=1, **QUIET, **options)  # type: ignore[arg-type]


def fit(module: InstructionModule, **options: object) -> InstructionModule:
    trainer(**options).fit(module, DataLoader(samples("train", 2), 2, collate_fn=module.collate))  # type: ignore[arg-type]
    return module


def test_what_trains_is_float32_and_what_is_frozen_stays_in_eval_mode(llava: str) -> None:
    module = fit(InstructionModule(llava, dtype="bfloat16"), precision="bf16-mixed")
    kinds = {(p.requires_grad, p.dtype) for p in module.parameters()}
    assert kinds == {(True, torch.float32), (False, torch.bfloat16)}
    assert module.vlm.decoder.layers[0].training and not any(part.training for part in module.vlm.tower.modules())
    module.eval()
    assert not module.vlm.decoder.training
    module.train()
    assert module.vlm.projector.training and not module.vlm.tower.training


@pytest.mark.parametrize(
    ("precision", "says"),
    [("bf16-true", "would round small updates away"), ("32-true", "frozen weights are bfloat16.*bf16-mixed")],
)
def test_precisions_that_lose_or_clash_are_refused(llava: str, precision: str, says: str) -> None:
    with pytest.raises(ValueError, match=says):
        fit(InstructionModule(llava, dtype="bfloat16"), precision=precision)


@pytest.mark.parametrize("tune", ["full", "projector"])
def test_activations_are_computed_again_without_a_difference(llava: str, tune: str) -> None:
    found = []
    for again in (False, True):
        L.seed_everything(0, verbose=False)
        module = InstructionModule(llava, tune=tune, activation_checkpointing=again)
        runs: list[int] = []
        module.vlm.decoder.layers[1].self_attn.register_forward_hook(lambda *_, runs=runs: runs.append(1))
        fit(module)
        found.append((len(runs), [p.detach().clone() for p in module.parameters() if p.requires_grad]))
    (once, weights), (twice, others) = found
    assert (once, twice) == (1, 2)
    assert all(torch.equal(a, b) for a, b in zip(weights, others))


def test_a_frozen_tied_weight_is_in_no_checkpoint(tmp_path: Path) -> None:
    module = InstructionModule(str(build_qwen2_vl(tmp_path, layers=2, width=64)), tune="projector")
    names = set(module.state_dict())
    assert names and all("merger" in name for name in names)


@pytest.mark.parametrize("name", recipe.names("trainer/"))
def test_overlays_are_recipes_for_the_trainer_alone(name: str) -> None:
    assert recipe.expect("model", name) == ROOT / "recipes" / f"{name}.yaml"
    text = recipe.find(name).read_text()
    assert set(recipe.load([name])) == {"trainer"} and recipe.describe(name)
    assert f"-c {name}" in text


@pytest.mark.slow
@pytest.mark.parametrize("names", [["cpu"], ["single_gpu"], ["ddp"], ["fsdp2"], ["fsdp2", "slurm"], ["ddp", "slurm"]])
def test_overlays_are_checked_with_a_recipe(names: list[str]) -> None:
    overlays = [part for name in names for part in ("-c", f"recipes/trainer/{name}.yaml")]
    code = "import sys; from cropl.cli import training_cli; training_cli(sys.argv[1:], run=False, instantiate=False)"
    command = [sys.executable, "-c", code, "-c", "recipes/testbed/localizer.yaml", *overlays]
    environment = {**os.environ, "SLURM_JOB_NUM_NODES": "2", "SLURM_NTASKS_PER_NODE": "4"}
    subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True)
