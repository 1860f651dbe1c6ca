"""Where a training writes: one line of its recipe, or of the command, names the folder of the whole run."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from cropl import recipe
from cropl.cli import training_cli

STEPS = re.compile(r"^  max_(steps|epochs):", re.MULTILINE)
TRAININGS = [name for name in recipe.names() if STEPS.search(recipe.find(name).read_text(encoding="utf-8"))]
NEW = "runs/mine"


def texts(value: Any) -> Iterator[str]:
    """All that a configuration says in words."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, dict):
        for inner in value.values():
            yield from texts(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from texts(inner)


def parsed(name: str, *more: str) -> dict[str, Any]:
    flags = [part for one in (name, "trainer/cpu") for part in ("-c", str(recipe.find(one)))]
    return training_cli([*flags, *more], run=False, instantiate=False).config.as_dict()


def below(folder: str, config: Any) -> list[str]:
    return [text for text in texts(config) if Path(text).is_relative_to(folder)]


@pytest.mark.parametrize("name", TRAININGS)
def test_one_line_moves_the_whole_run(name: str) -> None:
    before, after = parsed(name), parsed(name, f"--trainer.default_root_dir={NEW}")
    old = before["trainer"]["default_root_dir"]
    written = below(old, before)
    assert old == ("runs/quickstart" if "quickstart" in name else f"runs/{name}") and len(written) >= 3
    assert below(NEW, after) == [NEW + text.removeprefix(old) for text in written]
    assert not below(old, after) and below("runs", after["trainer"]) == below(NEW, after["trainer"])


def test_a_copied_recipe_is_moved_by_that_line(tmp_path: Path) -> None:
    copied = recipe.copy("testbed/localizer", tmp_path / "mine.yaml")
    text = copied.read_text(encoding="utf-8")
    assert text.count("runs/testbed/localizer") == 1
    copied.write_text(text.replace("runs/testbed/localizer", NEW), encoding="utf-8")
    config = training_cli(["-c", str(copied)], run=False, instantiate=False).config.as_dict()
    assert set(below("runs", config["trainer"])) == {NEW, f"{NEW}/checkpoints", f"{NEW}/export"}
