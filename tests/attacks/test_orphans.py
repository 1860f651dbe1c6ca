"""A training that is killed leaves no worker process behind."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.data.conftest import write_shards as write_shards

SCRIPT = """
import os, signal, sys
import numpy as np
from cropl.data.shards import ShardReader
from cropl.data.stream import SampleStream, StreamLoader

def workers(samples):
    return os.getpid()

if __name__ == "__main__":
    stream = SampleStream(ShardReader(sys.argv[1]), np.zeros((1000, 1), dtype=int), collate=workers)
    batches = iter(StreamLoader(lambda: stream, 1000, 2, sys.argv[2]))
    print(*{next(batches) for _ in range(4)}, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)
"""


def alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc")
@pytest.mark.parametrize("method", ["forkserver", pytest.param("spawn", marks=pytest.mark.slow), "fork"])
def test_workers_end_with_their_training(write_shards: Callable[..., Path], tmp_path: Path, method: str) -> None:
    script = tmp_path / "training.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(write_shards()), method]
    run = subprocess.run(command, stdout=subprocess.PIPE, text=True, timeout=300)
    pids = [int(pid) for pid in run.stdout.split()]
    assert run.returncode == -signal.SIGKILL and len(pids) == 2
    deadline = time.monotonic() + 30
    while any(map(alive, pids)) and time.monotonic() < deadline:
        time.sleep(0.1)
    left = [pid for pid in pids if alive(pid)]
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert not left
