"""What a process and its children hold, every few seconds: memory, file descriptors, shared memory, threads. Linux."""

from __future__ import annotations

import multiprocessing.process
import os
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any

SHARED = Path("/dev/shm")


class Sampler:
    """Takes samples in a thread for as long as its block lasts.

    Args:
        interval: seconds from one to the next.
        localizer: the id of the process that localizes, where there is one.

    Attributes:
        samples: one mapping for each time: `seconds`; `main_mb`, `server_mb` (of the forkserver), `localizer_mb` and
            `worker_mb` (the largest of them), resident; `main_fds`, `main_threads`, `children`, `children_fds`, and
            `shared`, files in shared memory that were made since the start. What is not there is left out.
    """

    def __init__(self, interval: float, localizer: Callable[[], int | None]) -> None:
        self.samples: list[dict[str, float]] = []
        self._interval, self._localizer = interval, localizer
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        # Semaphores of this process and its children are known by a name of our own: others run beside a soak.
        self._prefix = f"/soak-{os.getpid()}"
        multiprocessing.process.current_process()._config["semprefix"] = self._prefix  # type: ignore[attr-defined]
        self._before = _names()

    def __enter__(self) -> Sampler:
        self._began = time.monotonic()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while not self._ended.wait(self._interval):
            self.samples.append(self.take())

    def take(self) -> dict[str, float]:
        """One sample."""
        me = os.getpid()
        children = _children()
        found: dict[str, float] = {
            "seconds": round(time.monotonic() - self._began, 1),
            "main_mb": resident(me),
            "main_fds": fds(me),
            "main_threads": len(os.listdir("/proc/self/task")),
        }
        below = _below(me, children)
        localizer = self._localizer()
        kept: dict[str, list[float]] = defaultdict(list)
        for pid in below:
            try:
                size, role = resident(pid), _role(pid, children)
                kept["fds"].append(fds(pid))
            except OSError:  # it has just ended
                continue
            kept["localizer" if pid == localizer else role].append(size)
        found |= {f"{role}_mb": max(sizes) for role, sizes in kept.items() if role not in ("fds", "other")}
        new = _names() - self._before
        mine = [name for name in new if name.startswith((f"sem.{self._prefix[1:]}", "torch_"))]
        return found | {"children": len(below), "children_fds": sum(kept["fds"]), "shared": len(mine)}


def resident(pid: int) -> float:
    """Megabytes in memory."""
    pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
    return round(pages * os.sysconf("SC_PAGE_SIZE") / 2**20, 2)


def fds(pid: int) -> int:
    """Open file descriptors."""
    return len(os.listdir(f"/proc/{pid}/fd"))


def _names() -> set[str]:
    return set(os.listdir(SHARED)) if SHARED.is_dir() else set()


def _children() -> dict[int, list[int]]:
    """The children of each process of this machine."""
    found: dict[int, list[int]] = defaultdict(list)
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                state, parent = Path(f"/proc/{entry}/stat").read_text().rpartition(")")[2].split()[:2]
            except OSError:
                continue
            if state != "Z":
                found[int(parent)].append(int(entry))
    return found


def _below(pid: int, children: dict[int, list[int]]) -> list[int]:
    return [found for child in children.get(pid, []) for found in [child, *_below(child, children)]]


def _role(pid: int, children: dict[int, list[int]]) -> str:
    """`server`, `worker` or `other`: a worker is forked from the server, whose command line it keeps."""
    command: Any = Path(f"/proc/{pid}/cmdline").read_bytes()
    if b"forkserver" not in command:
        return "other"
    return "server" if pid in children.get(os.getpid(), []) else "worker"
