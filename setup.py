"""Only the list of packages: `recipes/` and `datamodules/` ship inside `cropl` (see pyproject.toml)."""

from setuptools import find_packages, setup

setup(
    packages=[
        *find_packages(include=["cropl", "cropl.*"]),
        *(f"cropl.{name}" for name in find_packages(include=["recipes", "recipes.*", "datamodules", "datamodules.*"])),
    ]
)
