"""Runs commands in a Python that is cut off from every other machine, with a token in its environment.

A `sitecustomize` on the path of that process, and of all that it starts, refuses whatever leaves this machine and
writes it down. `START_METHOD` in the environment is what processes are started by where code does not say.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SECRET = "hf_SECRETsecretSECRETsecretSECRETsecret"

GUARD = """
import errno, multiprocessing, os, sys

if "START_METHOD" in os.environ and not multiprocessing.get_start_method(allow_none=True):
    multiprocessing.set_start_method(os.environ["START_METHOD"])

LOCAL = ("127.", "::1", "localhost", "0.0.0.0")

def refuse(event, args):
    if event in ("socket.connect", "socket.sendto", "socket.sendmsg"):
        host = args[1][0] if isinstance(args[1], tuple) else ""
    elif event in ("socket.getaddrinfo", "socket.gethostbyname"):
        host = args[0] or ""
    else:
        return
    host = host.decode() if isinstance(host, bytes) else host
    if host and not host.startswith(LOCAL):
        with open(os.environ["CALLS"], "a") as file:
            file.write(f"{event} {host}\\n")
        raise OSError(errno.ENETUNREACH, "Network is unreachable")

sys.addaudithook(refuse)
"""

RUN = """
import json, sys
from cropl.cli import main

if __name__ == "__main__":
    for args in json.loads(sys.argv[1]):
        print("<code>", main(args), flush=True)
"""


@dataclass(frozen=True)
class Told:
    """What a guarded process did: exit codes of its commands, what it printed, whom it called."""

    codes: list[int]
    printed: str
    calls: list[str]


class Guarded:
    """Commands in a folder of their own, which is home, working directory, cache and place of temporary files."""

    def __init__(self, folder: Path, **environment: str) -> None:
        self.folder, self.given = folder, environment
        (folder / "guard").mkdir()
        (folder / "tmp").mkdir()
        (folder / "guard" / "sitecustomize.py").write_text(GUARD)
        (folder / "run.py").write_text(RUN)

    def python(self, script: Path | str, *args: str, timeout: float = 500) -> Told:
        """Run a file."""
        calls = self.folder / "calls"
        calls.write_text("")
        places = {"HOME": "", "HF_HOME": "hub", "CROPL_CACHE": "cache", "TMPDIR": "tmp", "CALLS": "calls"}
        environment = {
            "PATH": os.environ["PATH"], "PYTHONPATH": os.pathsep.join([str(self.folder / "guard"), str(ROOT)]),
            "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "COLUMNS": "200", "HF_TOKEN": SECRET,
            "HUGGING_FACE_HUB_TOKEN": SECRET, **{name: str(self.folder / at) for name, at in places.items()},
            **self.given,
        }  # fmt: skip
        run = subprocess.run(
            [sys.executable, str(script), *args], cwd=self.folder, env=environment, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=timeout,
        )  # fmt: skip
        codes = [int(line.split()[1]) for line in run.stdout.splitlines() if line.startswith("<code>")]
        return Told(codes, run.stdout, calls.read_text().splitlines())

    def cropl(self, *commands: Sequence[str]) -> Told:
        """Run command lines, one after the other, in one process."""
        return self.python(self.folder / "run.py", json.dumps([list(map(str, each)) for each in commands]))

    def files_with(self, secret: str = SECRET) -> list[str]:
        """The files below the folder that hold it."""
        found = [path for path in self.folder.rglob("*") if path.is_file() and secret.encode() in path.read_bytes()]
        return [str(path.relative_to(self.folder)) for path in found]
