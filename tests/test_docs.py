"""What the pages name exists: recipes, verbs, classes and files."""

import importlib
import re
from pathlib import Path

import pytest

from cropl import recipe

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("*.ipynb"))
RECIPE = re.compile(
    r"(?:-c|cropl show|cropl check|cropl fit|cropl evaluate) ((?:[a-z][a-z0-9_]*/)+[a-z0-9_]+)(?![\w./-])"
)
NAME = re.compile(r"`(cropl(?:\.\w+)+)`|class_path: (cropl(?:\.\w+)+)|from (cropl(?:\.\w+)*) import (\w+)")
OWN = ("benchmark", "compressor", "data", "evaluate", "localizer", "testbed", "trainer", "visionzip")


def text(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def resolve(dotted: str) -> object:
    """A module, or what is in one."""
    try:
        return importlib.import_module(dotted)
    except ModuleNotFoundError:
        module, _, name = dotted.rpartition(".")
        return getattr(resolve(module), name)


@pytest.mark.parametrize("path", [*PAGES, *NOTEBOOKS], ids=lambda path: str(path.relative_to(ROOT)))
def test_recipes_that_are_named_exist(path: Path) -> None:
    named = {name for name in RECIPE.findall(text(path)) if name.split("/")[0] in OWN}
    assert not named - set(recipe.names())


def test_the_pages_name_recipes() -> None:
    assert {"testbed/study", "trainer/fsdp2"} <= {name for path in PAGES for name in RECIPE.findall(text(path))}


def test_modules_and_classes_that_are_named_exist() -> None:
    found = {match for path in [*PAGES, *NOTEBOOKS] for match in NAME.findall(text(path))}
    dotted = {quoted or classed or f"{module}.{name}" for quoted, classed, module, name in found}
    assert len(dotted) > 30
    missing = []
    for name in sorted(dotted):
        try:
            resolve(name)
        except (ImportError, AttributeError):
            missing.append(name)
    assert not missing


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_files_that_are_named_exist(path: Path) -> None:
    named = re.findall(
        r"`((?:cropl|tests|recipes|datamodules|notebooks|docs)/[\w/.]+\.(?:py|yaml|ipynb|md|jpg))`", text(path)
    )
    assert not [name for name in named if not (ROOT / name).exists()]
