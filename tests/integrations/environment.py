"""An environment with lmms-eval, apart from the project's own: its dependencies do not go together with ours.

`CROPL_LMMS_PYTHON` names an interpreter that has `cropl[lmms-eval]`'s dependencies, and no torchvision of another build
than its torch. Without it one is made, once, in pytest's cache, which takes a network and some minutes.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
VARIABLE = "CROPL_LMMS_PYTHON"


def wheel(folder: Path) -> Path:
    """Build the working tree's wheel into a folder."""
    source = folder / "source"
    skip = shutil.ignore_patterns(".*", "runs", "build", "__pycache__", "*.egg-info", "docs", "tests")
    shutil.copytree(ROOT, source, ignore=skip)
    build = "from setuptools import build_meta; build_meta.build_wheel('..')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (found,) = folder.glob("*.whl")
    return found


def interpreter(cache: Path, built: Path) -> str:
    """The interpreter of the environment, which is made where it is missing."""
    if named := os.environ.get(VARIABLE):
        return named
    pins = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    # lmms-eval pins an older wandb than ours, which takes no protobuf as new as ours.
    pins = "\n".join(line for line in pins.splitlines() if line.partition("==")[0] not in ("protobuf", "wandb"))
    wanted = pins + (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    home = cache / hashlib.sha256(wanted.encode()).hexdigest()[:16]
    python = home / "bin" / "python"
    if not (home / "complete").exists():
        shutil.rmtree(home, ignore_errors=True)
        _run(sys.executable, "-m", "venv", home)
        (home / "constraints.txt").write_text(pins, encoding="utf-8")
        pip = (python, "-m", "pip", "--disable-pip-version-check")
        constrained = (*pip, "install", "-q", "-c", home / "constraints.txt")
        # As in the Makefile: torch first, so that no dependency pulls in another build of it.
        _run(*constrained, *os.environ.get("PIP_TORCH", "").split(), "torch")
        _run(*constrained, f"cropl[lmms-eval] @ {built.as_uri()}")
        # torchvision may be of another build than torch; of cropl each run takes the tree's own.
        _run(*pip, "uninstall", "-q", "-y", "torchvision", "cropl")
        (home / "complete").touch()
    return str(python)


def unpacked(built: Path, folder: Path) -> Path:
    """The wheel as a folder for PYTHONPATH, with its entry points."""
    shutil.unpack_archive(built, folder, "zip")
    return folder


def _run(*command: object) -> None:
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True)
    told = re.sub(r"WARNING.*\n", "", done.stderr)[-2000:]
    assert done.returncode == 0, f"{VARIABLE} is not set, and {' '.join(map(str, command))} failed: {told}"
