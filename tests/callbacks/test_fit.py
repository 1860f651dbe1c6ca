"""`cropl fit` from the command line, on the testbed's scenes, whose training draws questions and phases of tokens."""

from __future__ import annotations

import logging
import os
import shutil
import signal
from pathlib import Path

import pytest
import torch

from cropl import cli
from cropl.callbacks import complete
from cropl.callbacks.preemption import TERMINATED
from cropl.testbed.build import build_qwen2_vl

RECIPE = """
model:
  class_path: cropl.modules.instruction.InstructionModule
  init_args: {{checkpoint: {base}, stride: 2, max_turns: 2, lr: 1.0e-3}}
data:
  class_path: cropl.datamodules.testbed.TestbedScenes
  init_args: {{checkpoint: {base}, scenes: 6, val_scenes: 2, batch_size: 2, cache: {folder}/cache}}
trainer:
  accelerator: cpu
  devices: 1
  max_epochs: 2
  num_sanity_val_steps: 0
  enable_progress_bar: false
  enable_model_summary: false
  log_every_n_steps: 1
  default_root_dir: {folder}/run
  logger:
    - class_path: lightning.pytorch.loggers.CSVLogger
      init_args: {{save_dir: {folder}, name: run, version: ""}}
"""
OFTEN = """
  callbacks:
    - class_path: cropl.callbacks.checkpoint.Checkpoint
      init_args: {{every_n_train_steps: 1, keep: 10, dirpath: {folder}/run/checkpoints}}
"""
SLURM = {
    "SLURM_JOB_ID": "77", "SLURM_NTASKS": "1", "SLURM_NODEID": "0", "SLURM_PROCID": "0", "SLURM_LOCALID": "0",
    "SLURM_JOB_NAME": "train", "SLURM_NODELIST": "here",
}  # fmt: skip


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    return build_qwen2_vl(tmp_path_factory.mktemp("base"), layers=2, width=32)


def fit(folder: Path, base: Path, *flags: str, recipe: str = RECIPE + OFTEN) -> int:
    folder.mkdir(exist_ok=True)
    path = folder / "recipe.yaml"
    path.write_text(recipe.format(base=base, folder=folder))
    return cli.main(["fit", "-c", str(path), *flags])


@pytest.fixture(scope="module")
def whole(base, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    assert fit(folder, base) == 0
    return folder


def saved(folder: Path, step: int):
    return torch.load(folder / f"run/checkpoints/step-{step:06d}" / complete.WHOLE, weights_only=True)


@pytest.mark.parametrize("step", [2, pytest.param(3, marks=pytest.mark.slow)])  # inside an epoch, and at its end
def test_a_continued_run_is_exact(whole, base, tmp_path, step):
    assert len(complete.complete(whole / "run/checkpoints")) == 6
    assert fit(tmp_path, base, "--ckpt_path", str(whole / f"run/checkpoints/step-{step:06d}")) == 0
    ends = [saved(each, 6) for each in (whole, tmp_path)]
    assert ends[0]["state_dict"].keys() == ends[1]["state_dict"].keys()
    for name, value in ends[0]["state_dict"].items():
        assert torch.equal(value, ends[1]["state_dict"][name]), name
    assert torch.equal(ends[0]["cropl"]["rng"][0]["python"][1], ends[1]["cropl"]["rng"][0]["python"][1])


def test_other_settings_are_refused_or_taken(whole, base, tmp_path, capsys, caplog):
    flags = [
        "--ckpt_path", str(whole / "run/checkpoints/step-000004"), "--model.init_args.lr", "2.0e-3",
        "--seed_everything", "5", "--data.init_args.batch_size", "3", "--trainer.max_epochs", "3",
    ]  # fmt: skip
    assert fit(tmp_path, base, *flags) == 2
    error = capsys.readouterr().err
    assert "model.init_args.lr: 0.001 in the checkpoint, 0.002 now" in error and "--allow_change true" in error
    assert "seed_everything: 0 in the checkpoint, 5 now" in error
    assert "data.init_args.batch_size: 2 in the checkpoint, 3 now" in error and "max_epochs" not in error
    with caplog.at_level(logging.WARNING):
        assert fit(tmp_path, base, *flags[:4], "--allow_change", "true") == 0
    assert "continuing with other settings: model.init_args.lr: 0.001" in caplog.text
    groups = saved(tmp_path, 6)["optimizer_states"][0]["param_groups"]
    assert all(group["initial_lr"] == 2e-3 for group in groups), "the command line's rate, not the checkpoint's"
    assert saved(whole, 6)["optimizer_states"][0]["param_groups"][0]["initial_lr"] == 1e-3


def test_hyperparameters_never_overrule_the_command_line(whole, tmp_path):
    """A checkpoint that says otherwise, as Lightning's command line would believe."""
    torch.save(saved(whole, 6) | {"hyper_parameters": {"max_turns": 1, "lr": 5.0}}, tmp_path / "other.ckpt")
    args = ["--config", str(whole / "recipe.yaml"), "--ckpt_path", str(tmp_path / "other.ckpt")]
    made = cli.training_cli(["validate", *args]).model
    assert made.lr == 1e-3 and made.max_turns == 2


@pytest.mark.slow
def test_a_recipe_without_checkpoints_gets_them(base, tmp_path, monkeypatch):
    said = []
    monkeypatch.setattr("cropl.callbacks.checkpoint.rank_zero_info", said.append)
    assert fit(tmp_path, base, "--trainer.max_epochs", "1", recipe=RECIPE) == 0
    (only,) = complete.complete(tmp_path / "run/checkpoints")
    assert only.name == "step-000003" and said == [f"log: {tmp_path}/run, last checkpoint: {only}"]
    assert fit(tmp_path, base, "--trainer.enable_checkpointing", "false", recipe=RECIPE) == 0
    assert complete.complete(tmp_path / "run/checkpoints") == [only]


@pytest.mark.slow
def test_sigterm_ends_with_its_code(whole, base, tmp_path, monkeypatch):
    """Sent inside a step: the checkpoint is that of its end, and continues exactly."""
    from cropl.modules.instruction import InstructionModule

    real = InstructionModule.training_step

    def step(self, batch, index):
        if self.global_step == 1:
            os.kill(os.getpid(), signal.SIGTERM)
            os.kill(os.getpid(), signal.SIGTERM)
        return real(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(InstructionModule, "training_step", step)
        assert fit(tmp_path, base, recipe=RECIPE) == TERMINATED
    assert [path.name for path in complete.complete(tmp_path / "run/checkpoints")] == ["step-000002"]
    assert fit(tmp_path, base, "--ckpt_path", "last", recipe=RECIPE) == 0
    for name, value in saved(whole, 6)["state_dict"].items():
        assert torch.equal(value, saved(tmp_path, 6)["state_dict"][name]), name


@pytest.mark.slow
def test_slurm_requeues_after_a_complete_checkpoint(base, tmp_path, monkeypatch):
    from cropl.modules.instruction import InstructionModule

    tool = tmp_path / "bin/scontrol"
    tool.parent.mkdir()
    tool.write_text(f'#!/bin/sh\nls {tmp_path}/run/checkpoints > {tmp_path}/seen\necho "$@" > {tmp_path}/told\n')
    tool.chmod(0o755)
    for name, value in {**SLURM, "PATH": f"{tool.parent}:{os.environ['PATH']}"}.items():
        monkeypatch.setenv(name, value)
    real = InstructionModule.training_step

    def step(self, batch, index):
        if self.global_step == 1:
            os.kill(os.getpid(), signal.SIGUSR1)
        return real(self, batch, index)

    with monkeypatch.context() as patch:
        patch.setattr(InstructionModule, "training_step", step)
        assert fit(tmp_path, base, recipe=RECIPE) == TERMINATED
    assert (tmp_path / "told").read_text() == "requeue 77\n" and (tmp_path / "seen").read_text() == "step-000002\n"
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")  # the same command is run again
    assert fit(tmp_path, base, recipe=RECIPE) == 0
    assert [path.name for path in complete.complete(tmp_path / "run/checkpoints")] == ["step-000006", "step-000002"]


def test_two_runs_do_not_share_a_folder(whole, base, capsys):
    from cropl.callbacks.run_folder import Claim

    other, before = Claim(), (whole / "run/metrics.csv").read_bytes()
    other.take(whole / "run/checkpoints")
    assert fit(whole, base) == 1
    assert "another run writes into" in capsys.readouterr().err
    assert (whole / "run/metrics.csv").read_bytes() == before, "nor does the second touch the first one's log"
    other.release()


def test_only_a_training_that_begins_writes_its_recipe(whole, base, tmp_path, monkeypatch, capsys):
    """`cropl export RUN` reads it; what is refused, or only validates, may have other options."""
    from cropl.callbacks.run_folder import Claim

    path, before = whole / "run/config.yaml", (whole / "run/config.yaml").read_bytes()
    other = ["--model.init_args.stride", "1"]
    step = str(whole / "run/checkpoints/step-000006")
    assert cli.main(["validate", "-c", str(whole / "recipe.yaml"), "--ckpt_path", step, *other]) == 0
    assert fit(whole, base, "--ckpt_path", "last", *other) == 2
    assert "stride: 2 in the checkpoint, 1 now" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert cli.main(["export", str(whole / "run"), str(tmp_path / "out")]) == 0, capsys.readouterr().err
    for name, value in SLURM.items():  # each process is one of its own, and the folder is claimed when all have met
        monkeypatch.setenv(name, value)
    claim = Claim()
    claim.take(whole / "run/checkpoints")
    assert fit(whole, base, *other) == 1
    assert "another run writes into" in capsys.readouterr().err and path.read_bytes() == before
    claim.release()


def test_a_requeued_job_goes_on_from_its_own_checkpoint(whole, base, tmp_path, monkeypatch):
    """Started from a named one: from that again, as long as it has none of its own."""
    taken = []

    def ends_at_once(self, *args, **options):
        taken.append([*args, *options.values()])
        raise ValueError("it was only to be asked from where it goes on")

    monkeypatch.setattr("lightning.pytorch.Trainer._fit_impl", ends_at_once)
    named = str(whole / "run/checkpoints/step-000003")
    fit(tmp_path, base, "--ckpt_path", named)
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    fit(tmp_path, base, "--ckpt_path", named)
    shutil.copytree(whole / "run/checkpoints/step-000006", tmp_path / "run/checkpoints/step-000006")
    fit(tmp_path, base, "--ckpt_path", named)
    fit(tmp_path, base)
    assert [named in each for each in taken] == [True, True, False, False]
    assert ["last" in each for each in taken] == [False, False, True, True]


def test_checkpoints_are_validated_by_name(whole, base, capsys):
    path = whole / "recipe.yaml"
    for name in ("step-000006", f"step-000006/{complete.WHOLE}"):
        code = cli.main(["validate", "-c", str(path), "--ckpt_path", str(whole / "run/checkpoints" / name)])
        assert code == 0, capsys.readouterr().err
