"""What a training does with checkpoints that are damaged, hostile or cannot be written."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import lightning as L
import pytest
import torch

from cropl.callbacks import complete
from cropl.errors import RunError
from tests.callbacks.runs import Draws, Numbers, fit
from tests.callbacks.test_complete import DAMAGE, flip, truncate, unmark


@pytest.mark.parametrize("harm", DAMAGE)
def test_the_one_before_is_taken(tmp_path, harm, caplog):
    whole, _ = fit(tmp_path / "a", max_steps=4)
    fit(tmp_path / "b", max_steps=3)
    harm(tmp_path / "b" / "step-000003")
    with caplog.at_level(logging.WARNING):
        continued, trainer = fit(tmp_path / "b", "last", max_steps=4)
    assert [entry[:2] for entry in continued.steps] == [entry[:2] for entry in whole.steps[4:]]
    assert "step-000003 is damaged" in caplog.text.lower()
    assert [path.name for path in complete.complete(tmp_path / "b")] == [f"step-00000{n}" for n in (4, 3, 2, 1)]


def test_a_named_one_is_refused(tmp_path):
    fit(tmp_path, max_steps=2)
    folder = tmp_path / "step-000002"
    for harm in (flip, truncate, unmark):  # one on top of the other
        harm(folder)
        for name in (folder, folder / complete.WHOLE) if harm is not unmark else (folder,):
            with pytest.raises(ValueError, match=f"step-000002 is damaged: .*{DAMAGE[harm]}.*ckpt_path last"):
                fit(tmp_path, name, max_steps=3)


def test_none_is_sound(tmp_path):
    fit(tmp_path, max_steps=1)
    (tmp_path / "step-000001" / complete.MARKER).unlink()
    with pytest.raises(ValueError, match="no checkpoint in .* is complete"):
        fit(tmp_path, "last", max_steps=2)


def test_a_plain_file_is_loaded_and_a_damaged_one_named(tmp_path):
    fit(tmp_path, max_steps=2)
    plain = tmp_path / "plain.ckpt"
    (tmp_path / "step-000002" / complete.WHOLE).rename(plain)
    module, _ = fit(tmp_path / "b", plain, max_steps=3)
    assert module.steps[0][0] == 2
    os.truncate(plain, plain.stat().st_size // 2)
    with pytest.raises(ValueError, match="plain.ckpt is damaged"):
        fit(tmp_path / "c", plain, max_steps=3)


def test_a_checkpoint_that_runs_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"state_dict": {}, "evil": Evil()}, tmp_path / "evil.ckpt")
    with pytest.raises(ValueError, match="not loaded"):
        fit(tmp_path, tmp_path / "evil.ckpt")
    folder = tmp_path / "step-000001"
    partial = complete.begin(folder)
    complete.finish(partial, folder, complete.save_whole({"state_dict": {}, "evil": Evil()}, partial))
    with pytest.raises(ValueError, match="not loaded"):
        fit(tmp_path, "last")  # a marker says that it is whole, not that it is honest
    assert not (tmp_path / "ran").exists()


def fail_from(monkeypatch, first: int) -> None:
    """The disk is full when the file number `first` is synchronised."""
    real, count = os.fsync, 0

    def fsync(descriptor: int) -> None:
        nonlocal count
        count += 1
        if count >= first:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        real(descriptor)

    monkeypatch.setattr(os, "fsync", fsync)


def test_a_full_disk_ends_the_training(tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        fail_from(patch, 9)  # 4 a checkpoint
        with pytest.raises(RunError, match="cannot save the checkpoint .*step-000003: .*No space left.*ckpt_path last"):
            fit(tmp_path, max_steps=4)
    assert [path.name for path in complete.complete(tmp_path)] == ["step-000002", "step-000001"]
    assert not list(tmp_path.glob(".*.partial"))
    module, _ = fit(tmp_path, "last", max_steps=4)
    assert module.steps[0][0] == 2


def test_a_full_disk_may_be_only_warned_of(tmp_path, monkeypatch, caplog):
    with monkeypatch.context() as patch:
        fail_from(patch, 9)
        fit(tmp_path, max_steps=4, ckpt_stop_on_error=False)
    assert caplog.text.count("cannot save the checkpoint") == 3  # the last step is tried once more at the end
    assert complete.complete(tmp_path)[0].name == "step-000002"


class Linear(L.LightningModule):
    """Starts from a base model."""

    def __init__(self, checkpoint: Path):
        super().__init__()
        self.checkpoint = str(checkpoint)
        self.inner = Draws()

    def training_step(self, batch, index):
        return self.inner.layer(torch.ones(2, 4)).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


def base(folder: Path, seed: int) -> Path:
    from safetensors.torch import save_file

    folder.mkdir()
    (folder / "config.json").write_text("{}")
    save_file({"w": torch.randn(50_000, generator=torch.Generator().manual_seed(seed))}, folder / "model.safetensors")
    return folder


def test_another_base_is_refused(tmp_path):
    one, other = base(tmp_path / "one", 1), base(tmp_path / "other", 2)
    fit(tmp_path / "run", module=Linear(one), max_steps=1)
    with pytest.raises(ValueError, match="trained from another base: .*one .*this is .*other"):
        fit(tmp_path / "run", "last", module=Linear(other), max_steps=2)
    one.rename(tmp_path / "moved")
    fit(tmp_path / "run", "last", module=Linear(tmp_path / "moved"), max_steps=2)


def test_a_full_disk_while_old_ones_are_deleted_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(complete, "remove", lambda folder: (_ for _ in ()).throw(OSError(errno.EROFS, "read-only")))
    with pytest.raises(RunError, match="cannot delete an old checkpoint: .*read-only"):
        fit(tmp_path, max_steps=4, ckpt_keep=2)


def test_a_loader_that_fails_leaves_no_lock(tmp_path):
    class Broken(Numbers):
        def train_dataloader(self):
            raise ValueError("no data")

    with pytest.raises(ValueError, match="no data"):
        fit(tmp_path, data=Broken())
    fit(tmp_path, max_steps=1)
