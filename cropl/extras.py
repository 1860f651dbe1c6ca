"""The extras of the package: what each of them needs, and how that is installed."""

from __future__ import annotations

from importlib import metadata
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.requirements import Requirement


def requirements(extra: str | None = None) -> list[Requirement]:
    """What an extra needs; what cropl itself needs for None. In the order of `pyproject.toml`."""
    from packaging.requirements import Requirement

    found = [Requirement(text) for text in metadata.requires("cropl") or []]
    if extra is None:
        return [need for need in found if need.marker is None]
    return [need for need in found if need.marker is not None and need.marker.evaluate({"extra": extra})]


def remedy(extra: str) -> str:
    """The command that installs an extra: by its packages, as the `cropl` of the package index is another project."""
    try:
        needs = requirements(extra)
    except metadata.PackageNotFoundError:  # a source tree that is not installed
        return f"install what the extra {extra!r} in pyproject.toml names"
    return "pip install " + " ".join(f"'{need.name}{need.specifier}'" for need in needs)
