"""Faults of a training in two processes: all of them end together, soon, with a sound checkpoint behind them."""

from __future__ import annotations

import json
import os
import shutil
import signal

import pytest

from cropl.callbacks import complete
from cropl.callbacks.preemption import TERMINATED
from tests.attacks import faults
from tests.callbacks.runs import STEPS
from tests.distributed.worlds import write_samples

STRATEGIES = ["ddp", pytest.param("fsdp2", marks=pytest.mark.slow)]


def errors(out):
    return [(out / f"error-{rank}.txt").read_text() for rank in range(2)]


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("place", ["loss", pytest.param("gradient", marks=pytest.mark.slow)])
def test_no_number_on_one_process_stops_both(tmp_path, strategy, place):
    out = tmp_path / "run"
    assert faults.run(faults.bad, out, 2, strategy, 5, place) == [1, 1]
    assert errors(out)[0] == errors(out)[1]
    told = json.loads(next(out.glob("nonfinite-step-*.json")).read_text())
    step = told["step"]
    what = "the loss is nan" if place == "loss" else "the gradient's norm is nan"
    assert f"step {step}: {what}" in errors(out)[0] and "s5" in errors(out)[0]
    assert [(out / f"updates-{rank}").read_text() for rank in range(2)] == [str(step)] * 2
    assert complete.complete(out)[0].name == f"step-{step:06d}" if step else not complete.complete(out)
    guilty = [rank for rank, batches in enumerate(told["processes"]) if any("s5" in b["samples"] for b in batches)]
    assert len(guilty) == 1
    if place == "loss":
        assert f"in process {guilty[0]}, with the samples s5;" in errors(out)[0]


@pytest.mark.parametrize(
    "to",
    [(1,), pytest.param((0,), marks=pytest.mark.slow), pytest.param((0, 1), marks=pytest.mark.slow),
     pytest.param((1, 1, 0, 1), marks=pytest.mark.slow)],
    ids=["to-1", "to-0", "to-both", "again"],
)  # fmt: skip
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_sigterm_saves_once_and_ends_both(tmp_path, strategy, to):
    out = tmp_path / "run"
    with faults.running(faults.slow, out, 2, strategy) as ranks:
        faults.wait_for_batch(out, to[0], 3)
        for rank in to:
            os.kill(ranks[rank].pid, signal.SIGTERM)
        assert faults.codes(ranks) == [TERMINATED, 0]
    (saved,) = complete.complete(out)
    assert not complete.damage(saved) and int(saved.name[5:]) in (2, 3)
    if to == (1,):
        assert faults.run(faults.slow, out, 2, strategy, "last") == [0, 0]
        assert faults.run(faults.slow, tmp_path / "peace", 2, strategy) == [0, 0]
        assert faults.log(out) == faults.log(tmp_path / "peace") and len(faults.log(out)) == 2 * STEPS


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("rank", [0, pytest.param(1, marks=pytest.mark.slow)])
def test_a_disk_that_is_full_for_one_ends_both(tmp_path, strategy, rank):
    out = tmp_path / "run"
    ended = faults.run(faults.full, out, 2, strategy, rank)
    if strategy == "ddp" and rank == 1:  # it writes nothing
        assert ended == [0, 0]
        return
    assert ended == [1, 1] and errors(out)[0] == errors(out)[1]
    assert "cannot save the checkpoint" in errors(out)[0] and "No space left" in errors(out)[0]
    assert complete.complete(out) and not complete.damage(complete.complete(out)[0])
    assert not list(out.glob(".*.partial"))


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("strategy", ["ddp", "fsdp2"])
def test_killed_while_saving(tmp_path, strategy):
    """Both processes at each of their file operations: the last complete checkpoint continues exactly."""
    _kill_while_saving(tmp_path, faults.dying, strategy, STEPS, 2)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_localizer_killed_while_saving(tmp_path, tiny_localizer):
    shards = write_samples(tmp_path)
    _kill_while_saving(tmp_path, faults.dying_localizer, "fsdp2", 5, 5, tiny_localizer, shards)


def _kill_while_saving(tmp_path, training, strategy, steps, pace, *args):
    peace, start = tmp_path / "peace", tmp_path / "start"
    assert faults.run(training, peace, 2, strategy, None, None, *args) == [0, 0]
    shutil.copytree(peace, start)
    for path in complete.complete(start)[:-2]:
        shutil.rmtree(path)
    number = 0
    while True:
        number += pace if number > 8 else (pace + 1) // 2
        out = faults.copy_of(start, f"war-{number}")
        (out / "log.jsonl").write_text("")
        with faults.running(training, out, 2, strategy, "last", number, *args) as ranks:
            while all(process.is_alive() for process in ranks):
                ranks[0].join(0.05)
            ended = [process.exitcode for process in ranks]
            if -signal.SIGKILL not in ended:
                break
        found = complete.complete(out)
        assert found and not any(complete.damage(path) for path in found)
        assert faults.run(training, out, 2, strategy, "last", None, *args) == [0, 0]
        expected = {place: told for place, told in faults.log(peace).items() if place in faults.log(out)}
        assert faults.log(out) == expected and (steps - 1, 1) in expected
        assert not [path for path in out.iterdir() if path.name.startswith(".step")]
    assert number > 8
