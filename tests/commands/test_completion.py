"""Shells complete verbs, recipes and flags; the set of verbs and flags changes on purpose alone."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cropl import recipe
from cropl.cli import main
from cropl.commands.completion import flags, words
from cropl.commands.verbs import COMMANDS, TRAINING_VERBS

SURFACE = Path(__file__).parent / "surface.json"


def test_verbs_recipes_and_flags():
    assert words([]) == words([""]) == sorted({**COMMANDS, **TRAINING_VERBS})
    assert words(["ev"]) == ["evaluate"] and words(["shards", "b"]) == ["build"]
    assert words(["evaluate", "-c", "testbed/stu"]) == recipe.names("testbed/stu") != []
    assert words(["show", "localizer/qwen"]) == recipe.names("localizer/qwen") != []
    assert words(["ask", "--loc"]) == ["--localizer"] and words(["fit", "--c"]) == ["--config"]
    assert words(["score", "--sub"]) == ["--submission"]
    assert words(["ask", "photo"]) == [] and words(["nonsense", "--x"]) == []


def test_no_verb_or_flag_comes_or_goes_by_accident():
    """Changed on purpose: write what this prints into surface.json, and a line into CHANGELOG.md."""
    found = {verb: flags([verb]) for verb in sorted(COMMANDS)}
    for verb in ("bench", "shards"):
        found |= {f"{verb} {own}": flags([verb, own]) for own in words([verb, ""])}
    found |= {verb: [] for verb in TRAINING_VERBS}
    told = json.dumps(found, indent=1, sort_keys=True)
    print(told)
    assert told + "\n" == SURFACE.read_text(encoding="utf-8")


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_every_shell_has_its_script(shell, capsys):
    assert main(["completion", shell]) == 0
    assert "cropl completion --words" in capsys.readouterr().out


def test_another_shell_is_refused(capsys):
    assert main(["completion", "tcsh"]) == 2
    assert "tcsh" in capsys.readouterr().err


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
def test_bash_completes(capsys, tmp_path):
    main(["completion", "bash"])
    script = capsys.readouterr().out
    (tmp_path / "cropl").write_text(f'#!/bin/sh\nexec {sys.executable} -m cropl "$@"\n')
    (tmp_path / "cropl").chmod(0o755)
    asks = 'COMP_WORDS=(cropl evaluate -c testbed/study_q); COMP_CWORD=3; _cropl; echo "${COMPREPLY[@]}"'
    command = f'PATH="{tmp_path}:$PATH"\n{script}\n{asks}'
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.stdout.split() == ["testbed/study_qwen"], done.stderr


@pytest.mark.parametrize(
    "args",
    [["ls"], ["show", "testbed/study"], ["--help"], ["--version"], ["ask", "--help"], ["completion", "--words", ""]],
)
def test_light_verbs_import_no_torch(args):
    """Which is what takes seconds: they answer at once."""
    code = "import sys; from cropl.cli import main; code = main(sys.argv[1:]); exit(code + ('torch' in sys.modules))"
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code, *args], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    print(f"{time.perf_counter() - began:.2f} s")
