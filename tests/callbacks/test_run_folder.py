"""Whose the checkpoints in a folder are: a run deletes its own, and no branch's, whatever it was started from."""

from __future__ import annotations

import os

import pytest

from cropl.callbacks import complete
from cropl.callbacks.run_folder import last
from tests.attacks import faults
from tests.callbacks.runs import Draws, fit
from tests.callbacks.test_complete import flip


def names(folder):
    """In the order of saving."""
    return [path.name for path in reversed(complete.complete(folder))]


def run_of(folder, step):
    return complete.marker(folder / f"step-{step:06d}")["run"]


def test_branches_of_a_run_leave_one_another_alone(tmp_path, caplog):
    source, shared = tmp_path / "source", tmp_path / "shared"
    fit(source, max_steps=4)
    start = source / "step-000004"
    fit(shared, start, max_steps=8, ckpt_keep=2)
    assert names(shared) == ["step-000007", "step-000008"] and "of an earlier run" not in caplog.text
    kept = complete.seal(shared / "step-000008")
    fit(shared, start, module=Draws(lr=0.5), max_steps=12, ckpt_every_n_train_steps=5, ckpt_keep=2)
    assert names(shared) == ["step-000007", "step-000008", "step-000010", "step-000012"]
    assert complete.seal(shared / "step-000008") == kept
    assert f"{shared} has checkpoints of an earlier run, up to step-000008" in caplog.text
    assert len({run_of(source, 4), run_of(shared, 8), run_of(shared, 12)}) == 3


def test_from_an_earlier_step_later_ones_stay(tmp_path, caplog):
    fit(tmp_path, max_steps=9)
    before = {name: complete.seal(tmp_path / name) for name in names(tmp_path)}
    fit(tmp_path, tmp_path / "step-000003" / complete.WHOLE, max_steps=6, ckpt_keep=2)
    assert f"{tmp_path} has checkpoints of an earlier run, up to step-000009" in caplog.text
    assert names(tmp_path) == [f"step-{step:06d}" for step in (1, 2, 3, 7, 8, 9, 5, 6)], "4 was replaced, and pruned"
    untouched = [f"step-{step:06d}" for step in (1, 2, 3, 7, 8, 9)]
    assert all(complete.seal(tmp_path / name) == before[name] for name in untouched)
    fit(tmp_path, "last", max_steps=7, ckpt_keep=2)  # the branch goes on
    assert run_of(tmp_path, 7) == run_of(tmp_path, 6) != run_of(tmp_path, 8)
    fit(tmp_path, tmp_path / "step-000009", max_steps=10, ckpt_keep=2)  # and so does the other run
    assert names(tmp_path) == [f"step-{step:06d}" for step in (9, 6, 7, 10)]


@pytest.mark.parametrize("named", [False, True])
def test_damaged_ones_count_for_nothing(tmp_path, caplog, named):
    """The newest sound one continues the run, also where files only look sound."""
    fit(tmp_path, max_steps=4)
    run = run_of(tmp_path, 3)
    flip(tmp_path / "step-000004")
    fit(tmp_path, tmp_path / "step-000003" if named else "last", max_steps=6, ckpt_keep=2)
    assert run_of(tmp_path, 6) == run and "of an earlier run" not in caplog.text
    assert names(tmp_path) == ["step-000005", "step-000006"]


def test_what_no_marker_tells_of_is_nobodys(tmp_path, caplog):
    fit(tmp_path, max_steps=3)
    os.link(tmp_path / "step-000003" / complete.WHOLE, tmp_path / "step-000003.ckpt")  # as `cropl consolidate` names it
    fit(tmp_path, tmp_path / "step-000003.ckpt", max_steps=5, ckpt_keep=2)
    assert len(names(tmp_path)) == 5 and "of an earlier run" in caplog.text


def test_last_leaves_the_remedy_to_its_callers(tmp_path):
    (tmp_path / "step-000001").mkdir()
    (tmp_path / "step-000001" / complete.WHOLE).write_text("cut off")
    with pytest.raises(ValueError, match="no checkpoint in .* is complete$"):
        last(tmp_path, tell=False)
    with pytest.raises(ValueError, match="is complete: leave out --ckpt_path to start anew$"):
        fit(tmp_path, "last")


def branch(out, world, ckpt):
    _, trainer = fit(out / "saved", ckpt, world=world, max_steps=3 if ckpt is None else 4)
    (out / f"run-{trainer.global_rank}").write_text(trainer.checkpoint_callback._run)


@pytest.mark.slow
def test_two_processes_agree_on_the_run(tmp_path):
    out, told = tmp_path / "run", []
    for ckpt in (None, "last", str(out / "saved/step-000002")):
        assert faults.run(branch, out, 2, ckpt) == [0, 0]
        own = {(out / f"run-{rank}").read_text() for rank in range(2)}
        told.append(own | {run_of(out / "saved", 4 if ckpt else 3)})
    assert [len(runs) for runs in told] == [1, 1, 1] and told[0] == told[1] != told[2]
