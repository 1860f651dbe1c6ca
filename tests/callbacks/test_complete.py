"""A checkpoint is complete or absent, wherever its writer is killed and whatever the disk does."""

from __future__ import annotations

import errno
import json
import os
import pickle
import resource
import shutil
import signal
from pathlib import Path

import pytest
import torch

from cropl.callbacks import complete
from cropl.parallel import METADATA

CHECKPOINT = {"weights": torch.arange(3000.0), "step": 7}
WRITING = ("write", "fsync", "replace", "mkdir", "rmdir", "unlink", "remove", "open")


def save(target: Path, checkpoint=CHECKPOINT) -> None:
    """As one process does it."""
    partial = complete.begin(target)
    complete.finish(partial, target, complete.save_whole(checkpoint, partial))


def save_parts(target: Path) -> None:
    """As several processes do it: the first has written an index, each its part."""
    partial = complete.begin(target)
    for name in (".metadata", "__0_0.distcp", "__1_0.distcp", METADATA):
        (partial / name).write_bytes(name.encode() * 1000)
    complete.finish(
        partial, target, complete.synced(partial, slice(0, None, 2)) | complete.synced(partial, slice(1, None, 2))
    )


def killed_at(number: int, action) -> bool:
    """Do something in a process that is killed ahead of its file operation ``number``; whether that came."""
    child = os.fork()
    if child == 0:
        count = 0

        def guarded(function):
            def call(*args, **kwargs):
                nonlocal count
                count += 1
                if count == number:
                    os.kill(os.getpid(), signal.SIGKILL)
                return function(*args, **kwargs)

            return call

        for name in WRITING:
            setattr(os, name, guarded(getattr(os, name)))
        try:
            action()
        finally:
            os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_what_is_written(tmp_path):
    save(tmp_path / "step-1")
    save_parts(tmp_path / "step-2")
    assert complete.complete(tmp_path) == [tmp_path / "step-2", tmp_path / "step-1"]
    assert not complete.damage(tmp_path / "step-1") and not complete.damage(tmp_path / "step-2")
    said = json.loads((tmp_path / "step-1" / complete.MARKER).read_text())
    path = tmp_path / "step-1" / complete.WHOLE
    assert said == {"number": 1, "run": "", "files": {complete.WHOLE: complete.digest_of(path)}}
    assert torch.equal(torch.load(path, weights_only=True)["weights"], CHECKPOINT["weights"])
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("write", [save, save_parts])
@pytest.mark.parametrize("again", [False, True], ids=["new", "replaced"])
def test_killed_at_every_file_operation(tmp_path, write, again):
    """Also where a checkpoint of the same name is replaced."""
    save(tmp_path / "step-1")
    if again:
        save(tmp_path / "step-2", {"old": torch.ones(5)})
        old = complete.marker(tmp_path / "step-2")["files"]
    for number in range(1, 200):
        folder = tmp_path.with_name(f"{tmp_path.name}-{number}")
        shutil.copytree(tmp_path, folder)
        was_killed = killed_at(number, lambda folder=folder: write(folder / "step-2"))
        complete.tidy(folder)
        found = complete.complete(folder)
        assert folder / "step-1" in found and not any(complete.damage(path) for path in found)
        assert {path.name for path in folder.iterdir()} == {path.name for path in found}
        if again:  # the old or the new one, whole
            assert folder / "step-2" in found
        if not was_killed:
            assert found[0] == folder / "step-2" and (not again or complete.marker(found[0])["files"] != old)
            break
        shutil.rmtree(folder)
    assert number > 8, "it was not killed at all"


def test_killed_while_deleting(tmp_path):
    for number in range(1, 50):
        save(tmp_path / "step-1")
        save_parts(tmp_path / "step-2")
        was_killed = killed_at(number, lambda: complete.remove(tmp_path / "step-2"))
        left = complete.complete(tmp_path)
        assert tmp_path / "step-1" in left and not any(complete.damage(path) for path in left)
        if not was_killed:
            break
    assert number > 5 and left == [tmp_path / "step-1"]


def flip(folder: Path) -> None:
    path = max(
        (path for path in folder.iterdir() if path.name != complete.MARKER), key=lambda path: path.stat().st_size
    )
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def truncate(folder: Path) -> None:
    path = max(
        (path for path in folder.iterdir() if path.name != complete.MARKER), key=lambda path: path.stat().st_size
    )
    os.truncate(path, path.stat().st_size - 1)


def lose(folder: Path) -> None:
    next(path for path in sorted(folder.iterdir()) if path.name != complete.MARKER).unlink()


def unmark(folder: Path) -> None:
    (folder / complete.MARKER).unlink()


def scribble(folder: Path) -> None:
    (folder / complete.MARKER).write_text('{"number": 3')


DAMAGE = {
    flip: "SHA-256 differs", truncate: "bytes instead of", lose: "is missing",
    unmark: "not written to its end", scribble: "not written to its end",
}  # fmt: skip


@pytest.mark.parametrize("write", [save, save_parts])
@pytest.mark.parametrize("harm", DAMAGE)
def test_damage_is_seen(tmp_path, write, harm):
    write(tmp_path / "step-1")
    harm(tmp_path / "step-1")
    assert DAMAGE[harm] in complete.damage(tmp_path / "step-1")
    assert bool(complete.complete(tmp_path)) == (harm is flip)  # a look at sizes does not see it


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EIO, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("name", ["write", "fsync", "replace"])
def test_a_disk_that_fails(tmp_path, monkeypatch, name, code):
    save(tmp_path / "step-1")

    def fails(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    with monkeypatch.context() as patch:
        patch.setattr(os, name, fails)
        with pytest.raises(OSError) as error:
            save(tmp_path / "step-2")
    assert error.value.errno == code
    complete.tidy(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["step-1"] and not complete.damage(tmp_path / "step-1")


def test_a_file_that_may_not_grow(tmp_path):
    """EFBIG, from the operating system itself."""
    save(tmp_path / "step-1")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))
    try:
        with pytest.raises(OSError) as error:
            save(tmp_path / "step-2")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert error.value.errno == errno.EFBIG and complete.complete(tmp_path) == [tmp_path / "step-1"]


def test_nothing_is_written_elsewhere(tmp_path, monkeypatch):
    """Not in $TMPDIR, which may be small, in memory, or where a rename is a copy."""
    monkeypatch.setenv("TMPDIR", "/nowhere")
    monkeypatch.setattr("tempfile.tempdir", "/nowhere")
    save(tmp_path / "step-1")
    assert not complete.damage(tmp_path / "step-1")


def test_an_index_that_runs_code_is_refused(tmp_path):
    class Evil:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    (tmp_path / ".metadata").write_bytes(pickle.dumps({"a": Evil()}))
    with pytest.raises(ValueError, match="no index of a checkpoint .*mkdir.*not loaded"):
        complete.check_metadata(tmp_path)
    assert not (tmp_path / "ran").exists()


@pytest.mark.filterwarnings("ignore")
def test_torchs_own_index_is_read(tmp_path):
    import torch.distributed.checkpoint as dcp

    layer = torch.nn.Linear(3, 2).bfloat16()
    dcp.save(
        {"state_dict": layer.state_dict(), "optimizer_0": {"lr": 0.1, "betas": (0.9, 0.95)}}, checkpoint_id=tmp_path
    )
    complete.check_metadata(tmp_path)
