"""cropl doctor: what this machine has for cropl, what is missing, and how to get it."""

from __future__ import annotations

import json
import os
import platform
import shutil
import sys
from collections.abc import Mapping, Sequence
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cropl.commands.arguments import Parser
from cropl.commands.printing import table_console
from cropl.errors import one_line
from cropl.extras import remedy, requirements

if TYPE_CHECKING:
    from packaging.requirements import Requirement

EPILOG = """examples:
  cropl doctor
  cropl doctor --json > machine.json        # to send with a question"""

KERNELS = {
    "flash_attention_2": ("flash_attn", "pip install flash-attn --no-build-isolation"),
    "flash_attention_3": ("flash_attn_interface", "see github.com/Dao-AILab/flash-attention, folder hopper"),
}
"""Attention kernels that are packages of their own: what imports them, and how they are installed."""

MISSING, BUT = "missing", ", but cropl takes "
"""What is said of a package that is not there, and of one in another version."""

LITTLE = 20 * 2**30
"""Bytes of free disk below which a 7B checkpoint does not fit."""


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code."""
    parser = Parser("doctor", __doc__, EPILOG)
    parser.add_argument("--json", action="store_true", help="as JSON")
    given = parser.read(args)
    if given is None:
        return 0
    found = examine()
    if given.json:
        print(json.dumps(found, indent=1))
    else:
        _print(found)
    return 0


def examine() -> dict[str, dict[str, str]]:
    """Sections of names and what there is of each; what is missing begins with "missing"."""
    return {
        "versions": _versions(),
        "devices": _devices(),
        "attention": _attention(),
        "disk": _disk(),
        "extras": _extras(),
    }


def _versions() -> dict[str, str]:
    import cropl

    needs = sorted(requirements(), key=lambda need: need.name)
    told = {"cropl": cropl.__version__, "Python": f"{platform.python_version()} ({sys.executable})"}
    return told | {"system": platform.platform()} | {need.name: _installed(need) for need in needs}


def _devices() -> dict[str, str]:
    cpu = f"{_cores()} cores, {_gib(_memory())} of memory"
    try:
        import torch
    except Exception as error:  # what a broken installation raises is its own affair
        return {"CPU": cpu, "torch": f"cannot be imported: {one_line(error)}"}

    told = {"CPU": f"{cpu}, torch uses {torch.get_num_threads()} threads"}
    for index in range(torch.cuda.device_count()):
        try:
            about = torch.cuda.get_device_properties(index)
            free, _ = torch.cuda.mem_get_info(index)
        except RuntimeError as error:  # full, or another process's alone
            told[f"cuda:{index}"] = f"cannot be opened: {str(error).splitlines()[0]}"
            continue
        size = f"{_gib(about.total_memory)}, {_gib(free)} free"
        told[f"cuda:{index}"] = f"{about.name}, {size}, compute capability {about.major}.{about.minor}"
    if torch.backends.mps.is_available():
        told["mps"] = "available, and not tested"
    if len(told) == 1:
        built = torch.version.cuda or "no CUDA"
        told["GPU"] = f"none that torch {torch.__version__} ({built}) sees; the testbed needs none"
    return told


def _attention() -> dict[str, str]:
    told = {"sdpa": "in torch, the default", "eager": "in transformers, slow"}
    for name, (package, command) in KERNELS.items():
        told[name] = "available" if find_spec(package) else f"{MISSING}: {command}"
    return told


def _disk() -> dict[str, str]:
    from huggingface_hub.constants import HF_HUB_CACHE

    from cropl.data.stamp import cache_folder

    places = {"results (here)": Path.cwd(), "models of the hub": Path(HF_HUB_CACHE), "caches of cropl": cache_folder()}
    return {name: _free(place) for name, place in places.items()}


def _free(place: Path) -> str:
    there = place
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    little = ", little: a 7B checkpoint takes 14 GB" if free < LITTLE else ""
    locked = "" if os.access(there, os.W_OK) else ", and cannot be written"
    return f"{place}: {_gib(free)} free{little}{locked}"


def _extras() -> dict[str, str]:
    told = {}
    for extra in metadata.metadata("cropl").get_all("Provides-Extra") or []:
        found = {need.name: _installed(need) for need in requirements(extra)}
        missing = ", ".join(name for name, version in found.items() if version == MISSING)
        wrong = [f"{MISSING} {missing}"] if missing else []
        wrong += [f"{name} {version}" for name, version in found.items() if BUT in version]
        told[extra] = f"{', '.join(wrong)}: {remedy(extra)}" if wrong else "complete"
    return told


def _installed(need: Requirement) -> str:
    """Its version, and whether that is one that cropl takes."""
    try:
        version = metadata.version(need.name)
    except metadata.PackageNotFoundError:
        return MISSING
    taken = need.specifier.contains(version, prereleases=True)
    return version if taken else f"{version}{BUT}{need.specifier}"


def _cores() -> int:
    """Those that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _memory() -> int:
    """Bytes; 0 where the system does not say."""
    names: Mapping[str, int] = getattr(os, "sysconf_names", {})
    if not {"SC_PAGE_SIZE", "SC_PHYS_PAGES"} <= set(names):
        return 0
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB"


def _print(found: Mapping[str, Mapping[str, Any]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table(show_header=False, box=None, padding=(0, 2, 0, 0))
    for section, entries in found.items():
        table.add_row(Text(section, style="bold"))
        for name, value in entries.items():
            style = "yellow" if value.startswith((MISSING, "cannot")) or BUT in value or ", little" in value else ""
            table.add_row(Text(f"  {name}"), Text(value, style=style))
    table_console(140).print(table)
