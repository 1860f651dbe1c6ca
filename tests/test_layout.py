"""The layout holds: who may import whom, where Lightning may be, short files with a docstring, all of it packaged."""

import ast
import importlib.metadata
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parent.parent
PARTS = {"datamodules": ROOT / "datamodules", "recipes": ROOT / "recipes"}
FILES = sorted(path for folder in (ROOT / "cropl", *PARTS.values()) for path in folder.rglob("*.py"))

# What each part may import beside itself; never the other way round. Parts that do not exist yet are listed already.
LEAF = {
    "axis",
    "drawing",
    "errors",
    "extras",
    "grid",
    "prompt",
    "recipe",
    "tiling",
    "",
}  # "" is `import cropl` for its version
BASE = LEAF | {"budget", "metrics", "data", "testbed"}
ALLOWED = {
    "": {"budget", "evaluation", "grid", "metrics", "models", "prompt", "pruning"},  # the lazy public names
    "errors": set(),
    "extras": set(),
    "recipe": {"errors"},
    "axis": set(),
    "grid": {"axis"},
    "tiling": {"grid"},
    "drawing": {"grid"},
    "prompt": {"grid"},
    "budget": LEAF,
    "metrics": LEAF,
    "data": LEAF,
    "testbed": LEAF | {"data"},
    "models": LEAF | {"data", "testbed"},  # for the names of shipped checkpoints
    "pruning": LEAF | {"budget", "models"},
    "benchmarks": BASE,
    "parallel": LEAF,
    "callbacks": LEAF | {"metrics", "parallel"},
    "datamodules": LEAF | {"data", "testbed"},
    "modules": BASE | {"models", "pruning", "parallel", "evaluation"},
    "evaluation": BASE | {"benchmarks", "pruning", "models"},
    "bench": BASE | {"benchmarks", "pruning", "models", "evaluation"},
    "integrations": BASE | {"benchmarks", "pruning", "models", "evaluation"},
}
BELOW_COMMANDS = set(ALLOWED) | {"recipes"}
ALLOWED |= {"commands": BELOW_COMMANDS, "cli": BELOW_COMMANDS | {"commands"}, "recipes": set(), "__main__": {"cli"}}
LIGHTNING = {"cli", "modules", "callbacks", "datamodules", "parallel"}


def part_of(path: Path) -> str:
    """The part of a file: `grid` for cropl/grid.py, `data` for cropl/data/shards.py, "" for cropl/__init__.py."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    if parts[0] != "cropl":
        return parts[0]
    return "" if parts[1] == "__init__" else parts[1]


def imports(tree: ast.Module) -> Iterator[tuple[str, int]]:
    """Every absolute module name that is imported anywhere in a file, with its line."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"line {node.lineno}: write the absolute import"
            module = node.module or ""
            # `from cropl import recipe` imports cropl.recipe; `from cropl import __version__` only cropl.
            names = [a.name for a in node.names] if module == "cropl" else []
            yield from ((f"cropl.{name}" if name in ALLOWED else module, node.lineno) for name in names)
            if module != "cropl":
                yield module, node.lineno


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_keeps_to_the_layout(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    part = part_of(path)
    assert part in ALLOWED, f"{part!r} is a new part: say in this test what it may import"
    assert ast.get_docstring(tree) or not text.strip(), "a module says first what it is"
    assert len(text.splitlines()) <= 300, "one idea per file"
    for module, line in imports(tree):
        top, _, rest = module.partition(".")
        assert top not in ("recipes", "datamodules", "tests"), f"line {line}: import cropl.{top}"
        if top == "cropl":
            target = rest.split(".")[0]
            assert target == part or target in ALLOWED[part], f"line {line}: {part!r} may not import {module}"
        if top in ("lightning", "pytorch_lightning", "lightning_fabric"):
            assert part in LIGHTNING, f"line {line}: no Lightning in {part!r}"


def test_every_folder_is_a_package() -> None:
    assert not [path.parent for path in FILES if not (path.parent / "__init__.py").exists()]


def test_the_layout_names_no_part_below_itself() -> None:
    def reach(part: str) -> set[str]:
        found, new = set(), ALLOWED[part] - {""}
        while new:
            found |= new
            new = {further for each in new for further in ALLOWED[each]} - found - {""}
        return found

    assert not [part for part in ALLOWED if part and part in reach(part)]


def test_listing_recipes_stays_instant() -> None:
    code = "import sys, cropl.recipe as r; r.names(); print(sorted({'torch', 'lightning'} & set(sys.modules)))"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout.strip() == "[]"


def test_constraints_pin_every_dependency() -> None:
    pinned = {line.split("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line}
    wanted = [Requirement(text) for text in importlib.metadata.requires("cropl") or []]
    assert {canonicalize_name(requirement.name) for requirement in wanted} <= pinned
    for requirement in wanted:
        operators = {bound.operator for bound in requirement.specifier}
        assert operators == {">=", "<"} or requirement.name == "setuptools", (
            f"{requirement}: a lower and an upper bound"
        )


@pytest.mark.slow
def test_a_wheel_holds_code_recipes_and_data(tmp_path: Path) -> None:
    source = tmp_path / "source"
    skip = shutil.ignore_patterns(".*", "runs", "build", "__pycache__", "*.egg-info")
    shutil.copytree(ROOT, source, ignore=skip)
    build = "from setuptools import build_meta; build_meta.build_wheel('..')"
    subprocess.run([sys.executable, "-c", build], cwd=source, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    names = set(zipfile.ZipFile(wheel).namelist())
    modules = [p.relative_to(ROOT) for p in FILES]
    expected = {str(p) if p.parts[0] == "cropl" else f"cropl/{p}" for p in modules}
    ends = ("json", "safetensors", "jpg", "html", "css", "js", "jinja", "txt")
    shipped = [p for end in ends for p in (ROOT / "cropl").rglob(f"*.{end}")]
    data = {str(p.relative_to(ROOT)) for p in shipped}
    recipes = {f"cropl/{p.relative_to(ROOT)}" for p in PARTS["recipes"].rglob("*.yaml")}
    assert not (expected | data | recipes | {"cropl/py.typed"}) - names
    assert not [name for name in names if not name.startswith(("cropl/", "cropl-"))]
