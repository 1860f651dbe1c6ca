"""cropl completion SHELL: what makes a shell complete cropl's verbs, recipes and flags."""

from __future__ import annotations

import importlib
import io
import re
from collections.abc import Sequence
from contextlib import redirect_stdout

from cropl import recipe
from cropl.commands.arguments import Parser
from cropl.commands.verbs import COMMANDS, TRAINING_VERBS, TRAINS

EPILOG = """examples:
  eval "$(cropl completion bash)"                 in ~/.bashrc
  eval "$(cropl completion zsh)"                  in ~/.zshrc
  cropl completion fish | source                  in ~/.config/fish/config.fish"""

BASH = """_cropl() {
  local IFS=$'\\n'
  COMPREPLY=($(cropl completion --words "${COMP_WORDS[@]:1:COMP_CWORD}" 2>/dev/null))
  [ ${#COMPREPLY[@]} -gt 0 ] || COMPREPLY=($(compgen -f -- "${COMP_WORDS[COMP_CWORD]}"))
}
complete -o filenames -F _cropl cropl"""

SCRIPTS = {
    "bash": BASH,
    "zsh": f"autoload -U +X bashcompinit && bashcompinit\n{BASH}",
    "fish": "complete -c cropl -a '(cropl completion --words (commandline -opc)[2..] (commandline -ct) 2>/dev/null)'",
}

RECIPES = {"show": 1, "cp": 1, "ls": 1, "check": 99}
"""Verbs whose first arguments, so many of them, are recipes; all others take them behind -c."""


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code."""
    if args and args[0] == "--words":
        print("\n".join(words(args[1:])))
        return 0
    parser = Parser("completion", __doc__, EPILOG)
    parser.add_argument("shell", choices=tuple(SCRIPTS), metavar="SHELL", help="bash, zsh or fish")
    given = parser.read(args)
    if given is None:
        return 0
    print(SCRIPTS[given.shell])
    return 0


def words(typed: Sequence[str]) -> list[str]:
    """How the last of the words behind `cropl` may go on; none where it is a file, or anything."""
    *before, last = typed or [""]
    if not before:
        return _starting({**TRAINING_VERBS, **COMMANDS}, last)
    verb = before[0]
    own = getattr(_command(verb), "VERBS", {})
    if own and len(before) == 1:
        return _starting(own, last)
    if before[-1] in ("-c", "--config") or (len(before) <= RECIPES.get(verb, 0) and not last.startswith("-")):
        return recipe.names(last)
    return _starting(flags(before[: 2 if own else 1]), last) if last.startswith("-") else []


def flags(verbs: Sequence[str]) -> list[str]:
    """The flags of a verb, as its help tells them; -c alone for those of LightningCLI, which have hundreds."""
    if verbs[0] not in COMMANDS:
        return ["--config", "--help"]
    shown = io.StringIO()
    with redirect_stdout(shown):
        more = (None,) if verbs[0] in TRAINS else ()
        _command(verbs[0]).run([*verbs[1:], "--help"], *more)  # type: ignore[attr-defined]
    return sorted({*re.findall(r"(?<![\w-])--[a-z][\w-]*", shown.getvalue()), "--help"})


def _command(verb: str) -> object:
    return importlib.import_module(f"cropl.commands.{verb}") if verb in COMMANDS else object()


def _starting(known: object, start: str) -> list[str]:
    assert isinstance(known, (dict, list))
    return sorted(word for word in known if word.startswith(start))
