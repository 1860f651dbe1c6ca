"""Executes notebooks, each in an empty folder: `python notebooks/run.py [NAME ...]` writes them into runs/notebooks."""

from __future__ import annotations

import os
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from traitlets.config import Config

FOLDER = Path(__file__).parent
OUT = FOLDER.parent / "runs" / "notebooks"
QUIET = {"HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONWARNINGS": "ignore"}
"""Leaves bars of loading and warnings of libraries out of the outputs; errors stay."""
FIRST = "__import__('logging').getLogger('lightning.pytorch.utilities.rank_zero').setLevel('WARNING')"
"""What a kernel runs before the first cell: Lightning's tips stay out as well."""


class ThisInterpreter(AsyncKernelManager):
    """Starts kernels with the interpreter that runs this, whatever kernels are installed."""

    @property
    def kernel_spec(self) -> KernelSpec:
        kernel = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=[*kernel, f"--IPKernelApp.exec_lines={FIRST}"])


def execute(path: Path, folder: Path) -> nbformat.NotebookNode:
    """The notebook with its outputs; `folder` is where it works.

    Raises:
        CellExecutionError: a cell failed, or took more than 500 s.
    """
    notebook = nbformat.read(path, as_version=4)
    client = NotebookClient(
        notebook,
        kernel_manager_class=ThisInterpreter,
        config=Config(ThisInterpreter={"transport": "ipc", "ip": str(folder / ".kernel")}),  # sockets: no ports
        timeout=500,
        resources={"metadata": {"path": str(folder)}},
    )
    root = os.pathsep.join(filter(None, [str(FOLDER.parent), os.environ.get("PYTHONPATH")]))
    client.execute(env={**os.environ, **QUIET, "PYTHONPATH": root, "HF_HUB_OFFLINE": "1"})
    return notebook


def main(names: list[str]) -> None:
    OUT.mkdir(parents=True, exist_ok=True)
    for path in sorted(FOLDER.glob("*.ipynb")):
        if names and path.stem not in names:
            continue
        began = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            nbformat.write(execute(path, Path(folder)), OUT / path.name)
        print(f"{path.stem}  {time.monotonic() - began:.0f} s", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
