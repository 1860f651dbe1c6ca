"""The examples in docstrings are true: every module's doctests are run."""

import doctest
import importlib
import pkgutil

import pytest

import cropl

OPTIONS = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE


def modules() -> list[str]:
    """Every module with an example; of the others none is imported."""
    found = pkgutil.walk_packages(cropl.__path__, "cropl.", onerror=lambda name: None)
    return [one.name for one in found if not one.ispkg and ">>> " in source(one)]


def source(one: pkgutil.ModuleInfo) -> str:
    spec = one.module_finder.find_spec(one.name, None)
    assert spec is not None and spec.loader is not None
    return spec.loader.get_source(one.name) or ""  # type: ignore[attr-defined]


EXAMPLES = modules()


def test_there_are_examples() -> None:
    assert "cropl.metrics.area" in EXAMPLES


@pytest.mark.parametrize("name", EXAMPLES)
def test_the_examples_of_a_module_hold(name: str) -> None:
    found = doctest.testmod(importlib.import_module(name), optionflags=OPTIONS)
    assert found.attempted and not found.failed
