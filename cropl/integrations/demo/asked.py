"""What the page asks, checked without a model: JSON of unknown origin to an `Asked`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cropl.errors import UsageError, check_keys
from cropl.evaluation import schema
from cropl.evaluation.arms import check_budget
from cropl.grid import GRID, Region

METHODS = (
    "ilp", "prune", "plc", "fastv", "sparsevlm", "pyramiddrop", "visionzip", "vispruner", "divprune", "random",
    "uniform", "dense",
)  # fmt: skip
"""What the page offers: every method by name that needs no further arguments, PLC where the model has a compressor."""
BY_REGION = ("ilp", "prune", "plc")
"""Methods that keep what the region says."""

MAX_BODY = 16_384
MAX_QUESTION = 1_000
MAX_NEW_TOKENS = 256


@dataclass(frozen=True)
class Asked:
    """One question.

    Attributes:
        picture: its id.
        question: at most `MAX_QUESTION` characters.
        method: one of `METHODS`.
        layer: K; None is the method's own, near the paper's 2 of 32.
        budget: tokens that stay (int), or their share (float); None keeps the region.
        region: drawn by the user; None takes the localizer's.
        max_new_tokens: of an answer.
    """

    picture: str
    question: str
    method: str = "ilp"
    layer: int | None = None
    budget: int | float | None = None
    region: Region | None = None
    max_new_tokens: int = 32

    @classmethod
    def read(cls, body: bytes) -> Asked:
        """From JSON.

        Raises:
            UsageError: it is no such question; the message is for whoever asked.
        """
        try:
            given = json.loads(body)
        except (ValueError, RecursionError):
            raise UsageError("the request is no JSON") from None
        if not isinstance(given, Mapping):
            raise UsageError("the request must be a JSON object")
        check_keys(dict(given), ["picture", "question", "method", "layer", "budget", "region", "max_new_tokens"], "ask")
        given = {name: value for name, value in given.items() if value is not None}
        if any(isinstance(value, str) and not _encodable(value) for value in given.values()):
            raise UsageError("the request holds half a character (a lone surrogate), which is no text")
        if not isinstance(given.get("picture"), str):
            raise UsageError("no picture: choose one, or upload your own")
        method = given.get("method", "ilp")
        schema.one_of(method, METHODS, "method")
        layer = _integer(given, "layer", 0, 10_000)
        if layer is not None and method in ("prune", "plc", "dense"):
            raise UsageError(f"K has no effect with {method}")
        budget = given.get("budget")
        if budget is not None:
            check_budget(budget, "budget")
            if method in ("plc", "dense"):
                raise UsageError(f"a budget has no effect with {method}")
        length = _integer(given, "max_new_tokens", 1, MAX_NEW_TOKENS)
        return cls(
            given["picture"], _question(given.get("question")), method, layer, budget, _region(given.get("region")),
            cls.max_new_tokens if length is None else length,
        )  # fmt: skip


def _encodable(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _question(given: Any) -> str:
    if given is not None and not isinstance(given, str):
        raise UsageError("the question must be text")
    question = " ".join((given or "").split())
    if not question:
        raise UsageError("the question is empty: ask something about the image")
    if len(question) > MAX_QUESTION:
        raise UsageError(f"the question has {len(question):,} characters, the limit is {MAX_QUESTION:,}")
    return question


def _region(given: Any) -> Region | None:
    if given is None:
        return None
    whole = isinstance(given, list) and all(isinstance(each, int) and not isinstance(each, bool) for each in given)
    if not whole or len(given) != 4:
        raise UsageError(f"region: give four integers from 0 to {GRID - 1}: x_min, y_min, x_max, y_max")
    return Region(*given)


def _integer(given: Mapping[str, Any], name: str, least: int, most: int) -> int | None:
    value = given.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
        raise UsageError(f"{name} {str(value)[:20]}: must be an integer from {least} to {most:,}")
    return value
