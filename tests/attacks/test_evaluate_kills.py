"""`cropl evaluate` that is killed at random, or shared among processes, comes to what one run left in peace does."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from cropl.testbed.official import export
from tests.attacks.test_orphans import alive

ROOT = Path(__file__).resolve().parent.parent.parent
RECIPE = """
vars: {{root: {root}}}
model: {model}
localizer: {localizer}
benchmarks:
  - {{recipe: testbed/benchmark/scienceqa, prepare: null}}
  - {{recipe: testbed/benchmark/mme, prepare: null}}
  - {{recipe: testbed/benchmark/scenes, vars: {{count: 9}}, controls: blank_image}}
paper: null
arms:
  - {{method: ilp, region_source: [predicted, random], layer: 1, budget: 16}}
  - {{method: fastv, layer: 1, budget: 16}}
seeds: [0, 1]
batch_size: 2
bootstrap: 20
gallery: 0
"""
TIMES = ("seconds", "encode_seconds", "localizer_seconds", "peak_memory_bytes", "text_only_seconds", "threads")
ANSWERS = 14 * 5 + 7 + 28 * 5 + 9 * 6
"""Of all runs to all questions; seven have no image, and are asked once."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="needs /proc"),
]


@dataclass(frozen=True)
class World:
    """A copy of the sources, which nobody changes while runs go on, and a suite."""

    sources: Path
    recipe: Path

    def start(self, out: Path, *flags: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "cropl", "evaluate", "-c", str(self.recipe), "--out", str(out), *flags]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        return subprocess.Popen(
            command, cwd=self.sources, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )

    def run(self, out: Path, *flags: str) -> None:
        process = self.start(out, *flags)
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_llava, tiny_localizer) -> World:
    folder: Path = tmp_path_factory.mktemp("world")
    left_out = shutil.ignore_patterns("__pycache__", "recipes", "datamodules")
    shutil.copytree(ROOT / "cropl", folder / "cropl", ignore=left_out)
    for name in ("recipes", "datamodules"):  # where an installed package has them
        shutil.copytree(ROOT / name, folder / "cropl" / name, ignore=shutil.ignore_patterns("__pycache__"))
    root = export(folder / "official", count=14)
    (folder / "suite.yaml").write_text(RECIPE.format(root=root, model=tiny_llava, localizer=tiny_localizer))
    return World(folder, folder / "suite.yaml")


@pytest.fixture(scope="module")
def peace(world, tmp_path_factory) -> Any:
    """What a run comes to that nobody disturbs."""
    out = tmp_path_factory.mktemp("peace") / "out"
    world.run(out)
    return plain(out)


def plain(out: Path) -> Any:
    """Everything that a run has left but times: rows, predictions, submissions."""
    found: dict[str, Any] = {}
    for path in sorted(out.rglob("*")):
        name = str(path.relative_to(out))
        if path.name == "results.json":
            results = json.loads(path.read_text())
            for row in results["rows"]:
                row.update(dict.fromkeys(TIMES))
            for line in results.get("suite", []):
                line["seconds"] = None
            found[name] = results
        elif path.is_file() and path.suffix != ".html":
            found[name] = path.read_text()
    return found


def finds(out: Path) -> list[dict[str, Any]]:
    """The whole lines of all journals."""
    lines = [line for file in sorted(out.glob("*/.partial/*.jsonl")) for line in file.read_bytes().splitlines(True)]
    return [json.loads(line) for line in lines if line.endswith(b"\n")]


def answered(out: Path) -> list[tuple[str, str, str]]:
    """What is answered: benchmark, run and question."""
    told = []
    for folder in sorted(out.glob("*/.partial")):
        for file in sorted(folder.glob("answers.*.jsonl")):
            lines = [json.loads(line) for line in file.read_bytes().splitlines(True) if line.endswith(b"\n")]
            told += [(folder.parent.name, line["run"], line["key"]) for line in lines if "run" in line]
    return told


def children(pid: int) -> Iterator[int]:
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == pid:
            yield int(stat.parent.name)


def wait(seconds: float, until: Any) -> bool:
    end = time.monotonic() + seconds
    while not until() and time.monotonic() < end:
        time.sleep(0.01)
    return bool(until())


def kill(process: subprocess.Popen[str]) -> None:
    """End a run without a warning; processes that it started have to notice."""
    started = list(children(process.pid))
    process.send_signal(signal.SIGKILL)
    process.communicate()
    gone = wait(30, lambda: not any(map(alive, started)))
    for pid in started:
        if alive(pid):
            os.kill(pid, signal.SIGKILL)
    assert gone, "processes outlive the one that started them"


def killed_again_and_again(world: World, out: Path, seed: int, processes: list[int]) -> int:
    """Kill a run of each number of processes, after some more finds, or while it still loads; how many it hit."""
    rng, hit = random.Random(seed), 0
    for place, number in enumerate(processes):
        before = answered(out)
        process = world.start(out, "--processes", str(number))
        known = len(finds(out))
        more = rng.randrange(5, 60) if place else 0
        wait(120, lambda process=process, known=known, more=more: process.poll() is not None
             or len(finds(out)) >= known + more)  # fmt: skip
        time.sleep(rng.random() * (0.1 if place else 3))
        hit += process.poll() is None
        kill(process)
        now = answered(out)
        assert set(now) >= set(before) and len(now) == len(set(now)), "an answer is lost, or was made again"
        assert not (out / "results.json").exists()
    return hit


@pytest.mark.parametrize("processes", [[1] * 5, [2] * 5, [2, 1, 3, 1, 2]], ids=["one", "two", "by-turns"])
def test_a_killed_run_comes_to_the_same(world, peace, tmp_path, processes) -> None:
    out = tmp_path / "out"
    assert killed_again_and_again(world, out, len(set(processes)), processes) == 5
    assert 0 < len(answered(out)) < ANSWERS
    world.run(out, "--processes", str(processes[-1]))
    assert plain(out) == peace
    assert not list(out.rglob(".partial"))


def test_processes_come_to_the_same(world, peace, tmp_path) -> None:
    world.run(tmp_path / "two", "--processes", "2")
    assert plain(tmp_path / "two") == peace


def test_parts_that_somebody_starts_come_to_the_same(world, peace, tmp_path) -> None:
    out = tmp_path / "out"
    parts = [world.start(out, "--part", f"{index}/2") for index in range(2)]
    for part in parts:
        _, errors = part.communicate(timeout=300)
        assert part.returncode == 0, errors
    assert len(answered(out)) == ANSWERS and not (out / "results.json").exists()
    world.run(out)
    assert plain(out) == peace
