"""The circumstances of a run that go into every row: hardware, numbers format, versions, commit."""

from __future__ import annotations

import platform
import resource
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

import cropl
from cropl.models.vlm import VLM

PACKAGES = ("torch", "transformers", "lightning", "pillow")


def hardware(device: torch.device) -> str:
    """The name of the processor that answers."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        name = next(line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        name = platform.processor() or platform.machine()
    return name


def versions() -> dict[str, str]:
    """Versions of cropl, Python and the packages that numbers depend on."""
    found = {"cropl": cropl.__version__, "python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def commit() -> str | None:
    """The commit of the source checkout that runs, with "-dirty" for local changes; None for an installed package."""
    root = Path(cropl.__file__).resolve().parent.parent
    if not (root / ".git").exists():
        return None
    try:
        name = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        done = subprocess.run(name, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None


def peak_memory(device: torch.device) -> int:
    """Peak memory so far, in bytes: of the accelerator, or resident memory of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def circumstances(vlm: VLM) -> dict[str, Any]:
    """The fields that all rows of a run share."""
    return {
        "num_layers": vlm.num_layers,
        "hardware": hardware(vlm.device),
        "threads": torch.get_num_threads() if vlm.device.type == "cpu" else None,
        "dtype": str(vlm.model.dtype).removeprefix("torch."),
        "attention": vlm.decoder.config._attn_implementation or "eager",
        "protocol": vlm.protocol,
        "image_processor": type(vlm.processor.image_processor).__name__,
        "versions": versions(),
        "commit": commit(),
    }
