"""Workers and trainings that are killed: an error that names the worker, and nothing left in shared memory."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from cropl.data.sample import Sample
from cropl.data.shards import ShardReader
from cropl.data.stream import SampleStream, StartMethod, StreamLoader
from cropl.errors import RunError
from tests.attacks.test_orphans import SCRIPT
from tests.data.conftest import write_shards as write_shards


def pid_of(batch: list[object]) -> int:
    return os.getpid()


@pytest.mark.parametrize(
    "method", ["fork", *(pytest.param(m, marks=pytest.mark.slow) for m in ("forkserver", "spawn"))]
)
def test_a_worker_that_is_killed_is_named(write_shards: Callable[..., Path], method: StartMethod) -> None:
    """As the system does where memory is short: an error within seconds, and no other batch in its place."""
    stream = SampleStream(ShardReader(write_shards()), np.zeros((100_000, 1), dtype=int), collate=pid_of)  # type: ignore[arg-type]
    batches = iter(StreamLoader(lambda: stream, 100_000, 2, method))
    pids = {next(batches) for _ in range(4)}
    assert len(pids) == 2 and os.getpid() not in pids
    os.kill(min(pids), signal.SIGKILL)
    began = time.monotonic()
    with pytest.raises(RunError, match=rf"worker.*\b{min(pids)}\b"):
        list(batches)
    assert time.monotonic() - began < 60


@pytest.mark.parametrize("method", ["fork", "forkserver"])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_shard_that_vanishes_is_named(write_shards: Callable[..., Path], method: StartMethod, workers: int) -> None:
    """And taken for no killed worker."""
    folder = write_shards()
    stream = SampleStream(ShardReader(folder), np.arange(10)[:, None])
    for shard in folder.glob("*.tar"):
        shard.unlink()
    began = time.monotonic()
    with pytest.raises(FileNotFoundError, match=r"\.tar"):
        list(StreamLoader(lambda: stream, 10, workers, method))
    assert workers or time.monotonic() - began < 3


class Gone:
    """Raises what a reader of a disk that is gone does."""

    def __call__(self, samples: list[Sample]) -> None:
        raise self.error

    def __init__(self, error: Exception) -> None:
        self.error = error


@pytest.mark.parametrize("error", [EOFError("half a picture"), KeyError("no such key")], ids=["eof", "key"])
def test_an_error_of_a_worker_is_no_killed_worker(write_shards: Callable[..., Path], error: Exception) -> None:
    stream = SampleStream(ShardReader(write_shards()), np.arange(10)[:, None], collate=Gone(error))
    with pytest.raises(type(error), match="Caught .* in DataLoader worker process 0"):
        list(StreamLoader(lambda: stream, 10, 1, "fork"))


@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_a_folder_with_too_long_a_name_for_sockets_is_named(
    write_shards: Callable[..., Path], tmp_path: Path, method: str
) -> None:
    """Workers would fail at their first batch, and the training would wait for ever."""
    folder = tmp_path / ("x" * 100)
    folder.mkdir()
    code = (
        "from tests.attacks.test_lost_workers import *\n"
        "stream = SampleStream(ShardReader(Path(sys.argv[1])), np.zeros((4, 1), dtype=int), collate=pid_of)\n"
        "if __name__ == '__main__':\n    list(StreamLoader(lambda: stream, 4, 1, sys.argv[2]))\n"
    )
    command = [sys.executable, "-c", code, str(write_shards()), method]
    environment = {**os.environ, "TMPDIR": str(folder), "PYTHONPATH": os.pathsep.join(sys.path)}
    run = subprocess.run(command, env=environment, stderr=subprocess.PIPE, text=True, timeout=120)
    assert f"UsageError: TMPDIR {folder}: too long a path" in run.stderr and "shorter" in run.stderr


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="needs /dev/shm")
@pytest.mark.slow
@pytest.mark.parametrize("method", ["fork", "forkserver"])
def test_a_killed_training_leaves_nothing_in_shared_memory(
    write_shards: Callable[..., Path], tmp_path: Path, method: str
) -> None:
    prefix = f"cropl-test-{os.getpid()}-{method}"
    naming = f"import multiprocessing.process as p\np.current_process()._config['semprefix'] = '/{prefix}'\n"
    held = SCRIPT.replace("    os.kill(", "    print(*os.listdir('/dev/shm'), flush=True)\n    os.kill(")
    assert held != SCRIPT
    (tmp_path / "training.py").write_text(naming + held)
    command = [sys.executable, str(tmp_path / "training.py"), str(write_shards()), method]
    run = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, timeout=300)
    assert run.returncode == -signal.SIGKILL
    assert (prefix in run.stdout) == (method != "fork")  # semaphores without a name are nobody's to clean up
    deadline = time.monotonic() + 30
    while (left := [name for name in os.listdir("/dev/shm") if prefix in name]) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left
