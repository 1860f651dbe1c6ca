"""The official scorers of the benchmarks, written from their rules as loops over strings, one answer at a time."""

from __future__ import annotations

import json
from collections.abc import Sequence
from fractions import Fraction
from functools import cache
from pathlib import Path

TABLES = json.loads((Path(__file__).parents[2] / "cropl/benchmarks/vqa_normalisation.json").read_text())
MARKS = ';/[]"{}()=+\\_-><@`,?!'


def has_number_with_comma(text: str) -> bool:
    """A digit, one or more commas, a digit."""
    for start, char in enumerate(text):
        if char == "," and start and text[start - 1].isdecimal():
            end = start
            while end < len(text) and text[end] == ",":
                end += 1
            if end < len(text) and text[end].isdecimal():
                return True
    return False


def has_digit_comma_digit(text: str) -> bool:
    return any(text[i] == "," and text[i - 1].isdecimal() and text[i + 1].isdecimal() for i in range(1, len(text) - 1))


def without_marks(text: str, all_go: bool) -> str:
    made = text
    for mark in MARKS:
        beside = (mark + " ") in text or (" " + mark) in text
        made = "".join(("" if all_go or beside else " ") if char == mark else char for char in made)
    kept, removed = [], 0
    for i, char in enumerate(made):
        digit_follows = i + 1 < len(made) and made[i + 1].isdecimal()
        if char == "." and not digit_follows and removed < 32:
            removed += 1
            continue
        kept.append(char)
    return "".join(kept)


def words(text: str) -> str:
    found = []
    for word in text.lower().split():
        word = TABLES["number_map"].get(word, word)
        if word in ("a", "an", "the"):
            continue
        found.append(TABLES["contractions"].get(word, word))
    return " ".join(found)


def one_line(text: str) -> str:
    return "".join(" " if char in "\n\t" else char for char in text).strip()


@cache
def challenge(text: str) -> str:
    text = "".join(char for char in text.lower() if char not in ",?").replace("'s", " 's").strip()
    text = one_line(text)
    return words(without_marks(text, has_number_with_comma(text)))


@cache
def official(text: str) -> str:
    text = one_line(text)
    return words(without_marks(text, has_digit_comma_digit(text)))


def leave_one_out(said: str, given: Sequence[str]) -> Fraction:
    total = Fraction(0)
    for left_out in range(len(given)):
        matches = sum(said == answer for i, answer in enumerate(given) if i != left_out)
        total += min(Fraction(1), Fraction(matches, 3))
    return total / len(given)


def textvqa(text: str, given: Sequence[str]) -> Fraction:
    return leave_one_out(challenge(text), [challenge(answer) for answer in given])


def vqav2(text: str, given: Sequence[str]) -> Fraction:
    said, given = one_line(challenge(text)), [one_line(answer) for answer in given]
    if any(answer != given[0] for answer in given):
        said, given = official(said), [official(answer) for answer in given]
    return leave_one_out(said, given)


def pope(text: str) -> str:
    first = ""
    for char in text:
        if char == ".":
            break
        if char != ",":
            first += char
    word, found = "", []
    for char in first + " ":
        if char == " ":
            found.append(word)
            word = ""
        else:
            word += char
    return "no" if any(word in ("No", "not", "no") for word in found) else "yes"


def mme(text: str) -> str:
    start = text.lower()
    if start in ("yes", "no"):
        return start
    if start[:4].find("yes") >= 0:
        return "yes"
    return "no" if start[:4].find("no") >= 0 else "other"


def scienceqa(text: str, choices: int) -> int:
    """Index of the choice, -1 for none."""
    letter = ""
    if len(text) == 1 and text in "ABCDE":
        letter = text
    elif len(text) >= 3 and text[0] in "ABCDE" and text[1:3] == ". ":
        letter = text[0]
    else:
        said, at, found = "The answer is ", 0, []
        while (at := text.find(said, at)) >= 0:
            rest = text[at + len(said) :]
            if len(rest) >= 2 and "A" <= rest[0] <= "Z" and rest[1] != "\n":
                found.append(rest[0])
                at += len(said) + 2
            else:
                at += 1
        letter = found[0] if len(found) == 1 else ""
    index = "ABCDE".find(letter) if letter else -1
    return index if index < choices else -1
