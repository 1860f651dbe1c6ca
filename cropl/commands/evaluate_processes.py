"""`cropl evaluate --processes N`: N processes on this machine, each with its part of the questions."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from typing import Any

from cropl.errors import USAGE, RunError, UsageError

WATCHED = "CROPL_WATCH_STDIN"
"""Set for a process whose standard input is closed when the one that started it ends."""


def run_parts(recipes: Sequence[str], overrides: Mapping[str, Any], processes: int, device: str | None) -> None:
    """Answer all parts, each in a process of its own, and wait for them; the first one tells its progress.

    Args:
        recipes: names or paths.
        overrides: dotted keys and values, with where results go.
        processes: how many.
        device: as the recipe names it; without, or as "cuda", the machine's GPUs are dealt out.

    Raises:
        RunError, UsageError: a process failed; what it said is on standard error. The others are stopped.
    """
    import torch

    gpus = torch.cuda.device_count() if device in (None, "cuda") else 0
    told = [word for name in recipes for word in ("-c", name)]
    told += [word for key, value in overrides.items() for word in (f"--{key}", json.dumps(value))]
    started: list[subprocess.Popen[bytes]] = []
    try:
        for index in range(processes):
            command = [sys.executable, "-m", "cropl", "evaluate", *told, "--part", f"{index}/{processes}"]
            started.append(
                subprocess.Popen(
                    command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, env=_environment(index, processes, gpus)
                )
            )
        _wait(started)
    finally:
        for process in started:
            if process.poll() is None:
                process.kill()
        for process in started:
            process.wait()


def _environment(index: int, processes: int, gpus: int) -> dict[str, str]:
    environment = {**os.environ, WATCHED: "1"}
    if gpus > 1:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES")
        names = visible.split(",") if visible else [str(gpu) for gpu in range(gpus)]
        environment["CUDA_VISIBLE_DEVICES"] = names[index % len(names)]
    if not gpus:  # processes that each take all cores stand in each other's way
        environment.setdefault("OMP_NUM_THREADS", str(max(1, (os.cpu_count() or 1) // processes)))
    return environment


def _wait(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    while True:
        codes = [process.poll() for process in processes]
        for index, code in enumerate(codes):
            if code not in (None, 0):
                kind = UsageError if code == USAGE else RunError
                raise kind(f"part {index} of {len(codes)} ended with exit code {code}; what is answered stays")
        if all(code == 0 for code in codes):
            return
        time.sleep(0.2)


def end_with_parent() -> None:
    """In a process that `run_parts` started: end when it does, however it ends."""
    if os.environ.pop(WATCHED, None):
        threading.Thread(target=_watch, daemon=True).start()


def _watch() -> None:
    while os.read(0, 1024):  # not `sys.stdin`: its lock would be held when this process ends
        pass
    os._exit(1)
