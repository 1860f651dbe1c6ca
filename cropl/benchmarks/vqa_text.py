"""The answer normalisation of the VQA challenge, in the two forms in use, quirks and all.

Tables of contractions, number words, articles and punctuation are those of the VQA evaluation code (BSD-2), as data.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from functools import cache, lru_cache
from importlib.resources import files
from typing import Any

_PERIOD = re.compile(r"(?!<=\d)(\.)(?!\d)")  # looks for a literal "<=", so a full stop goes unless a digit follows
_COMMA_BETWEEN = re.compile(r"(?<=\d)(\,)+(?=\d)")
_COMMA = re.compile(r"(\d)(\,)(\d)")
_MOST = 32  # the flag re.UNICODE stands where the number of replacements belongs


@lru_cache(1 << 18)
def challenge(text: str) -> str:
    """An answer as the servers of VQA and TextVQA read it (`EvalAIAnswerProcessor`); LLaVA's submissions are this.

    Commas and question marks go first, so that "red,white" becomes "redwhite".
    """
    text = text.lower().replace(",", "").replace("?", "").replace("'s", " 's").strip()
    return _words(_unpunctuated(_one_line(text), _COMMA_BETWEEN))


@lru_cache(1 << 18)
def official(text: str) -> str:
    """An answer as VQA's own evaluation code reads it, where the annotators disagree."""
    return _words(_unpunctuated(_one_line(text), _COMMA))


def _one_line(text: str) -> str:
    return text.replace("\n", " ").replace("\t", " ").strip()


def _unpunctuated(text: str, comma: re.Pattern[str]) -> str:
    """Marks beside a space go, others become one; with a number like 3,000 anywhere, all of them go."""
    number = comma.search(text) is not None
    made = text
    for mark in _tables()["punctuations"]:
        goes = number or f"{mark} " in text or f" {mark}" in text
        made = made.replace(mark, "" if goes else " ")
    return _PERIOD.sub("", made, count=_MOST)


def _words(text: str) -> str:
    """Lower case; number words as digits, no articles, contractions with their apostrophes."""
    tables = _tables()
    words = [tables["number_map"].get(word, word) for word in text.lower().split()]
    return " ".join(tables["contractions"].get(word, word) for word in words if word not in tables["articles"])


@cache
def _tables() -> dict[str, Any]:
    read: dict[str, Any] = json.loads(
        files("cropl.benchmarks").joinpath("vqa_normalisation.json").read_text(encoding="utf-8")
    )
    return read


def tenths(matches: int) -> int:
    """Tenths of a point for an answer that so many of ten annotators gave.

    The mean over the ten ways of leaving one of them out of min(1, matches among the nine / 3).
    """
    return (0, 3, 6, 9, 10)[min(matches, 4)]


def check_ten(answers: Sequence[str], id: str) -> None:
    """ValueError unless there are ten answers of annotators."""
    if len(answers) != 10:
        raise ValueError(f"question {id}: {len(answers)} answers of annotators; the score is of ten")
