"""Every notebook runs from its first cell to its last, in an empty folder, and is stored without what a run leaves."""

import os
from pathlib import Path

import nbformat
import pytest

from notebooks.run import FOLDER, execute

NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
QUICK = ("01_quickstart", "02_regions_and_tokens")
"""Those that take seconds."""
PICTURES = {"image/png", "image/svg+xml"}


def marked(path: Path) -> object:
    return pytest.param(path, id=path.stem, marks=[] if path.stem in QUICK else pytest.mark.slow)


@pytest.mark.parametrize("path", [marked(path) for path in NOTEBOOKS])
def test_a_notebook_runs(path: Path, tmp_path: Path) -> None:
    code = [cell for cell in execute(path, tmp_path).cells if cell.cell_type == "code"]
    assert all(cell.execution_count for cell in code), "a cell was not run"
    shown = {kind for cell in code for output in cell.outputs for kind in output.get("data", {})}
    assert shown & (PICTURES | {"text/html"}), "neither a picture nor a table"


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_stored_bare(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs and cell.execution_count is None, f"{cell.id}: clear outputs before committing"
        assert not cell.metadata, f"{cell.id}: has metadata"
    assert notebook.metadata == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    assert notebook.cells[0].cell_type == "markdown" and notebook.cells[0].source.startswith("# ")
    assert path.stat().st_size < 20_000


def test_no_kernel_is_left(tmp_path: Path) -> None:
    cell = nbformat.v4.new_code_cell("import os\nprint(os.getpid())")
    nbformat.write(nbformat.v4.new_notebook(cells=[cell]), tmp_path / "pid.ipynb")
    pid = int(execute(tmp_path / "pid.ipynb", tmp_path).cells[0].outputs[0].text)
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
