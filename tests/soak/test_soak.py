"""Training and answering by turns hold no more and more: the soak of docs/results/soak.md, for a minute."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.soak.fit import growth
from tests.soak.report import page, plot
from tests.soak.run import soak
from tests.soak.sampler import Sampler, fds

proc = pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")


@proc
def test_a_sampler_sees_files_children_and_memory(tmp_path: Path) -> None:
    sampler = Sampler(60, lambda: None)
    with sampler:
        before = sampler.take()
        held = [open(os.devnull) for _ in range(7)]  # noqa: SIM115
        block = mmap.mmap(-1, 64 * 2**20)  # bytes of the heap may lie where something else was before
        block.write(bytes(len(block)))
        child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
        after = sampler.take()
        child.communicate(b"\n")
        for each in (*held, block):
            each.close()
    assert after["children"] == before["children"] + 1 and after["main_mb"] > before["main_mb"] + 50
    assert after["main_fds"] == before["main_fds"] + 7 + 1  # the child's pipe
    assert fds(os.getpid()) < after["main_fds"]


@pytest.mark.slow
@proc
def test_a_minute_of_training_and_answering_leaks_nothing(tmp_path: Path) -> None:
    made = soak(60, interval=0.5, epochs=10, reopen=3, questions=8)
    assert made["epochs"] >= 10 and made["pipelines"] >= 4 and made["steps"] == 4 * made["epochs"]
    assert made["questions"] == 8 * made["epochs"] and not made["without_region_or_answer"]
    held = made["samples"]
    quarter = len(held) // 4
    for name in ("main_fds", "main_threads", "children_fds", "children", "shared"):
        early, late = (max(each[name] for each in part) for part in (held[quarter : 2 * quarter], held[-quarter:]))
        assert late <= early + 4, name  # what an epoch opens and closes is there at one time and not at another
    assert growth(held, "main_fds", 0.4, most=True).change < 0.15
    settled, last = held[len(held) // 2]["main_mb"], held[-1]["main_mb"]
    assert last < settled + 60, "the first process"  # an epoch's batches and answers alone are more than that
    whole = {"command": "x", "commit": "y", "hardware": "z", "cores": 1, "versions": {"cropl": "0"}, **made}
    assert "| open files of the first process |" in page(whole)
    plot(whole, tmp_path / "soak.svg")
    assert (tmp_path / "soak.svg").stat().st_size > 1000
