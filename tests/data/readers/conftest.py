"""Small files in the published formats, and the published files where they are at hand."""

import json
import os
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import pytest

from cropl import recipe
from cropl.data.readers.base import Annotation, Reader, Rejected

DATA = Path(os.environ.get("CROPL_TEST_DATA") or Path(__file__).parents[4] / "shared" / "data")


@pytest.fixture
def published() -> Callable[[str], Path]:
    """The path of a published file; the test is skipped where it is absent."""

    def find(path: str) -> Path:
        if not (DATA / path).is_file():
            pytest.skip(f"needs {path}: set CROPL_TEST_DATA to a folder that has it")
        return DATA / path

    return find


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    """Writes rows as a `.jsonl` file, or a value as a `.json` file."""

    def write(rows: Any, name: str = "rows.jsonl") -> Path:
        path = tmp_path / name
        lines = rows if name.endswith(".jsonl") else [rows]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
        return path

    return write


def of_recipe(name: str, /, **variables: Any) -> Reader:
    """The one reader of a recipe, with other variables."""
    (source,) = recipe.load([name], {f"vars.{key}": str(value) for key, value in variables.items()})["sources"]
    reader = recipe.instantiate({key: source[key] for key in ("class_path", "init_args")}, name)
    assert isinstance(reader, Reader)
    return reader


def sort(found: Iterable[Annotation | Rejected]) -> tuple[list[Annotation], list[Rejected]]:
    """What could be used, and what could not."""
    both = list(found)
    return [one for one in both if isinstance(one, Annotation)], [one for one in both if isinstance(one, Rejected)]
