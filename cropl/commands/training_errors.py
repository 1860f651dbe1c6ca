"""What Lightning and jsonargparse say of wrong arguments of `cropl fit` and its like, in one line with the remedy."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from cropl import recipe
from cropl.errors import USAGE, UsageError, did_you_mean
from cropl.extras import remedy

_TRACKER = re.compile(r"(?:Requirement|Module not found:) '(wandb|mlflow)\b")
_OF_A_CLASS = re.compile(r"class_path '([^']+)': Option '([^']+)' is not accepted")
_OF_A_VERB = re.compile(r"unrecognized arguments: --([\w.]+)|does not accept option '([\w.]+)'")
_NOTHING_TO_DO = re.compile(r"`?(test|predict|validation)_(?:step|dataloader)")


def check_arguments(verb: str, args: Sequence[str]) -> None:
    """UsageError for the two mistakes that are made first: no recipe, and one without its `-c`."""
    if not args:
        raise UsageError(f"which recipe? cropl {verb} -c NAME_OR_PATH (`cropl ls` lists the built-in ones)")
    if not args[0].startswith("-"):
        raise UsageError(f"recipes stand behind -c: cropl {verb} -c {args[0]}")


def one_line_error(parser: Any, message: str, trainer: type) -> NoReturn:
    """jsonargparse prints its whole usage before an error; one line with the key is what helps."""
    print(f"cropl: error: {told(' '.join(str(message).split()), trainer)}", file=sys.stderr)
    raise SystemExit(USAGE)


def told(message: str, trainer: type) -> str:
    """What is wrong, with the nearest that would be right; a message that is not known stays as it is.

    Args:
        message: Lightning's, or jsonargparse's.
        trainer: the class whose arguments are the keys of `trainer`.
    """
    if tracker := _TRACKER.search(message):
        return f"trainer.logger: {tracker[1]} is not installed: {remedy('tracking')}"
    if message.strip() == "Unexpected config:":
        return "the recipe is empty"
    if "Union subtypes" in message:  # what the class said, out of all that a value could be: a model may be None
        text = " ".join(message.split())
        message = text.partition("Errors: - ")[2].partition(" - Expected a <class 'NoneType'>")[0] or text
    return message + _nearest(message, trainer)


def of_lightning(message: str, verb: str) -> str:
    """What Lightning refuses because a recipe has no part for this verb."""
    if (part := _NOTHING_TO_DO.search(message)) and verb in ("validate", "test", "predict"):
        return (
            f"this recipe has nothing to {verb} (no {part[1]} step or questions): try `cropl fit -c RECIPE`, "
            "`cropl validate -c RECIPE --ckpt_path last`"
        )
    return message


def _nearest(message: str, trainer: type) -> str:
    if found := _OF_A_CLASS.search(message):
        family = recipe.load_object(found[1])
        known = [name for each in inspect.getmro(family) for name in inspect.signature(each).parameters]
        return did_you_mean(found[2], known, 0.6)
    if found := _OF_A_VERB.search(message):
        known = [f"trainer.{name}" for name in inspect.signature(trainer).parameters]
        given = found[1] or found[2]
        if f"trainer.{given}" in known:
            return f"; did you mean {f'trainer.{given}'!r}?"
        known += ["model", "data", "seed_everything", "ckpt_path"]
        return did_you_mean(given, known, 0.6) or did_you_mean(given.partition(".")[0], known, 0.6)
    return ""
