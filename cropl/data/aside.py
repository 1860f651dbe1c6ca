"""Folders that are there whole or not at all."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def written_aside(folder: Path) -> Iterator[Path]:
    """A new folder beside ``folder`` that takes its name when the block ends well, and is deleted otherwise.

    So nobody finds half of it. What was at ``folder`` goes; if another process put its own there meanwhile, that stays.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    aside = folder.with_name(f".{folder.name}.{os.getpid()}")
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir()
    before = folder.stat().st_ino if folder.exists() else None
    try:
        yield aside
        if folder.exists() and folder.stat().st_ino == before:
            shutil.rmtree(folder)
        try:
            aside.rename(folder)
        except OSError:
            if not folder.exists():
                raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)
