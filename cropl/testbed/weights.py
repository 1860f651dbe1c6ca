"""Where the shipped checkpoints of the testbed lie. All were trained by the recipes in ``recipes/testbed``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

NAMES = {
    "llava": "tiny LLaVA: answers the testbed's questions over 24 x 24 visual tokens",
    "qwen2_vl": "tiny Qwen2-VL: answers them over about 64 merged tokens",
    "localizer": "the localizer, fine-tuned from the tiny Qwen2-VL",
}


def path(name: str) -> Path:
    """The folder of a shipped checkpoint (``llava``, ``qwen2_vl`` or ``localizer``), in ``transformers`` format."""
    if name not in NAMES:
        raise ValueError(f"the testbed ships no checkpoint {name!r}: choose one of {', '.join(NAMES)}")
    return Path(__file__).parent / "checkpoints" / name


def resolve(name_or_path: str) -> str:
    """``testbed:NAME`` as the folder of that shipped checkpoint, ``untrained:NAME`` as that of a new, untrained one
    (``llava`` or ``qwen2_vl``, made under ``runs/untrained`` with seed 0); anything else as it is."""
    prefix, _, name = name_or_path.partition(":")
    if prefix == "testbed" and name:
        return str(path(name))
    if prefix == "untrained" and name:
        from cropl.testbed import build

        make = {"llava": build.build_llava, "qwen2_vl": build.build_qwen2_vl}.get(name)
        if make is None:
            raise ValueError(f"no untrained model {name!r}: choose llava or qwen2_vl")
        folder = Path("runs/untrained") / name
        if not (folder / "config.json").exists():
            with written_aside(folder) as aside:
                make(aside)
        return str(folder)
    return name_or_path


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
