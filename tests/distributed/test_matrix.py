"""Sharded trainings of every kind, continued in every way: slow, as each is done in several processes."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from cropl.parallel import consolidate
from tests.distributed.test_fsdp2 import TIMEOUT, WEIGHTS
from tests.distributed.worlds import ROOT, Job, done, finish, start, train
from tests.reference.checkpoints import build_llava

pytestmark = pytest.mark.slow
WHOLE_FILE = {**TIMEOUT, "save_distributed_checkpoint": False}
LORA = {"tune": "lora", "lora": {"rank": 2, "dropout": 0.0}}
GUIDED = {"evidence_weight": 0.5, "evidence_layers": (1, 2)}


@pytest.fixture(scope="module")
def kinds(job: dict[str, Job]) -> dict[str, Job]:
    """Trainings that must be the same on two ranks."""
    instruction, localizer = job["instruction"], job["localizer"]
    deep = str(build_llava(instruction.out / "deep", layers=4, width=32))
    guided = {"checkpoint": deep, "options": GUIDED}
    return {
        "instruction": instruction,
        "localizer": localizer,
        "compressor": job["compressor"],
        "lora": localizer.on("lora", strategy=None, options={**localizer.options, **LORA}),
        "digits": localizer.on("digits", strategy=None, options={"codec": "digits"}),
        "projector": instruction.on("projector", strategy=None, options={"tune": "projector"}),
        "muon": instruction.on("muon", strategy=None, options={"muon": True}),
        "guided": instruction.on("guided", strategy=None, micro_batch=1, **guided),  # its second loss is a batch's mean
        "whole": instruction.on("whole", strategy=None, micro_batch=4),
    }


@pytest.fixture(scope="module")
def alone(kinds: dict[str, Job]) -> dict[str, dict[str, Any]]:
    return {name: train(each.on(name, strategy=None, save=f"{name}.alone")) for name, each in kinds.items()}


@pytest.fixture(scope="module")
def sharded(kinds: dict[str, Job], alone: dict[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """The same on two ranks, saved after the second step in parts and as a file, and continued from all of these."""
    again = {"localizer", "projector", "guided"}
    jobs = [
        each.on(name, save=f"{name}.parts", options={**each.options, "activation_checkpointing": name in again})
        for name, each in kinds.items()
    ]
    for name in ("instruction", "localizer", "lora"):
        jobs += [
            kinds[name].on(f"{name}-file", strategy=WHOLE_FILE, resume=f"{name}.parts", steps=4),
            kinds[name].on(f"{name}-saves", strategy=WHOLE_FILE, save=f"{name}.file"),
            kinds[name].on(f"{name}-from-file", resume=f"{name}.file"),
            kinds[name].on(f"{name}-from-one", resume=f"{name}.alone"),
        ]
    return done(jobs, seconds=1200)


KINDS = ["instruction", "localizer", "compressor", "lora", "digits", "projector", "muon", "guided", "whole"]


@pytest.mark.parametrize("kind", KINDS)
def test_two_ranks_train_as_one_process(
    kind: str, alone: dict[str, dict[str, Any]], sharded: dict[str, list[dict[str, Any]]]
) -> None:
    same(sharded[kind], alone[kind])
    assert sharded[kind][0]["losses"][1] > sharded[kind][0]["losses"][4] * 1.001


@pytest.mark.parametrize("way", ["file", "saves", "from-file", "from-one"])
@pytest.mark.parametrize("kind", ["instruction", "localizer", "lora"])
def test_two_ranks_continue_from_any_checkpoint(
    kind: str, way: str, alone: dict[str, dict[str, Any]], sharded: dict[str, list[dict[str, Any]]]
) -> None:
    same(sharded[f"{kind}-{way}"], alone[kind])


@pytest.mark.parametrize("kind", ["instruction", "localizer", "lora"])
def test_one_process_continues_from_two_ranks(
    kind: str, kinds: dict[str, Job], alone: dict[str, dict[str, Any]], sharded: dict[str, list[dict[str, Any]]]
) -> None:
    """From the parts of two, under FSDP2, and from one file of them without it."""
    out = kinds[kind].out
    same(done([kinds[kind].on(f"{kind}-1", resume=f"{kind}.parts")], world=1)[f"{kind}-1"], alone[kind])
    file = consolidate(out / f"{kind}.parts", out / f"{kind}.made")
    for name in (file.name, f"{kind}.file"):
        same([train(kinds[kind].on("plain", strategy=None, resume=name))], alone[kind])


def same(ranks: list[dict[str, Any]], alone: dict[str, Any]) -> None:
    """Losses of the steps that were done, scores, and the weights in the end."""
    for rank in ranks:
        assert rank["losses"] == pytest.approx({step: alone["losses"][step] for step in rank["losses"]}, rel=1e-5)
        assert 4 in rank["losses"] and rank["unchanged"]
        assert rank["scores"] == [pytest.approx(alone["scores"][0], rel=1e-5, nan_ok=True)]
    for name, value in alone["weights"].items():
        assert (ranks[0]["weights"][name] - value).abs().max() < WEIGHTS, name


def test_bfloat16_trains_every_kind(kinds: dict[str, Job], alone: dict[str, dict[str, Any]]) -> None:
    half = {**TIMEOUT, "compute_dtype": "bfloat16"}
    jobs = [kinds[name].on(f"{name}-half", strategy=half) for name in ("localizer", "compressor", "lora")]
    for name, ranks in zip(("localizer", "compressor", "lora"), done(jobs).values()):
        for rank in ranks:
            assert rank["losses"] == pytest.approx(alone[name]["losses"], rel=2e-2)
            assert rank["dtypes"] == {"torch.float32"} and rank["unchanged"]


def test_the_first_rank_fails(job: dict[str, Job]) -> None:
    broken = job["instruction"].on("first", strategy={"timeout_seconds": 1800}, fault=0)
    (first, said), (second, _) = finish(start([broken]), 300)
    assert first == second == 1 and "the disk of this rank is broken" in said


def test_the_command_line(tmp_path: Path) -> None:
    """Two processes that Lightning starts; then one file, and the same scores of one process."""
    sizes = ["--data.scenes", "16", "--data.val_scenes", "4", "--data.batch_size", "2"]
    quiet = ["--trainer.logger", "false", "--trainer.callbacks", "null", "--trainer.enable_progress_bar", "false"]

    def cropl(*args: str) -> str:
        command = [sys.executable, "-m", "cropl.cli", *args]
        environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
        ran = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=500)
        assert ran.returncode == 0, ran.stderr[-4000:]
        return ran.stdout

    recipe = ["-c", "testbed/localizer", "-c", "trainer/fsdp2", "--trainer.accelerator", "cpu", *sizes, *quiet]
    steps = ["--trainer.devices", "2", "--trainer.max_steps", "2", "--trainer.val_check_interval", "2"]
    cropl("fit", *recipe, *steps)
    (folder,) = (tmp_path / "checkpoints").glob("step-*")
    file = cropl("consolidate", str(folder)).strip()
    assert json.loads((folder / "complete.json").read_text())["files"]
    assert "val/mean_recall" in cropl(
        "validate", "-c", "testbed/localizer", "-c", "trainer/cpu", *sizes, *quiet, "--ckpt_path", file
    )  # fmt: skip
