"""Makes a page of the site from every notebook: text and code, and its outputs where it has been executed.

Notebooks are stored without outputs. `make notebooks` executes them into runs/notebooks, and pages show those outputs
as long as the cells are the same.
"""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import nbformat
from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files

ROOT = Path(__file__).parent.parent
STORED, EXECUTED = ROOT / "notebooks", ROOT / "runs" / "notebooks"
PICTURES = {"image/svg+xml": "svg", "image/png": "png"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for each notebook, and the pictures that it made."""
    for path in sorted(STORED.glob("*.ipynb")):
        pictures: dict[str, bytes] = {}
        text = page(path.stem, executed(path), pictures)
        files.append(File.generated(config, f"tutorials/{path.stem}.md", content=text))
        for name, content in pictures.items():
            files.append(File.generated(config, f"tutorials/{name}", content=content))
    return files


def executed(path: Path) -> Any:
    """The executed copy of a notebook, if there is one of the same cells; else the notebook."""
    stored = nbformat.read(path, as_version=4)
    if not (EXECUTED / path.name).is_file():
        return stored
    copy = nbformat.read(EXECUTED / path.name, as_version=4)
    return copy if [c.source for c in copy.cells] == [c.source for c in stored.cells] else stored


def page(stem: str, notebook: Any, pictures: dict[str, bytes]) -> str:
    """Markdown; pictures are put into `pictures` by the name that the page links to."""
    parts = []
    for number, cell in enumerate(notebook.cells, 1):
        if cell.cell_type == "markdown":
            parts.append(cell.source.replace(".ipynb)", ".md)"))
            if number == 1:
                parts.append(f"*This page is `notebooks/{stem}.ipynb`: open it in Jupyter and run it.*")
            continue
        parts.append(f"```python\n{cell.source}\n```")
        for place, output in enumerate(cell.get("outputs", [])):
            parts.append(shown(output, f"{stem}_{number}_{place}", pictures))
    return "\n\n".join(filter(None, parts)) + "\n"


def shown(output: Any, name: str, pictures: dict[str, bytes]) -> str:
    """Markdown of one output; nothing for warnings and progress."""
    if output.output_type == "stream":
        return f'```text title="output"\n{output.text.rstrip()}\n```' if output.name == "stdout" else ""
    data = output.get("data", {})
    for kind, end in PICTURES.items():
        if kind in data:
            raw = data[kind].encode() if end == "svg" else base64.b64decode(data[kind])
            pictures[f"{name}.{end}"] = raw
            return f"![What the cell shows]({name}.{end})"
    if "<table" in data.get("text/html", ""):
        return f'<div class="output">{data["text/html"]}</div>'
    text = data.get("text/plain", "")
    return f'```text title="output"\n{text}\n```' if text and "<pre" not in data.get("text/html", "") else ""
