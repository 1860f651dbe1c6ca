"""Answers that a file has already: which questions they leave, and one line for each key in the end.

New lines are only ever appended, so that whoever is stopped loses nothing; a line that had an error stands until a
newer one of its key is there, and the file is then replaced as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Container, Iterator, Mapping
from pathlib import Path
from typing import Any

from cropl.errors import UsageError
from cropl.evaluation.files import write_atomically

Asked = tuple[str, str]
"""Image, as its line names it, and question."""

_BEGINNING = b'{"key": "'  # of every line that `cropl answer` writes


def read_done(path: Path, settings: Mapping[str, Any] | None = None) -> dict[str, Asked]:
    """What the answered keys asked. A last line that was cut off is removed; those with an error are not done.

    Args:
        path: file of answers.
        settings: of this run, which those answers must have, too; None asks for none.

    Raises:
        UsageError: a line is no answer, or one with other settings, or a key has two.
    """
    if not path.exists():
        return {}
    done: dict[str, Asked] = {}
    lines: dict[str, int] = {}
    for number, _, row in _rows(path):
        if row["error"] is not None:
            continue
        theirs, ours = row.get("settings") or {}, settings or {}
        if differ := [name for name in theirs if name in ours and theirs[name] != ours[name]]:
            told = ", ".join(f"{name} {theirs.get(name)}" for name in differ)
            raise UsageError(f"{path}:{number}: was answered with {told}; resume like that, or give another --out")
        if row["key"] in lines:
            raise UsageError(f"{path}:{number}: key {row['key']!r} has an answer at line {lines[row['key']]}; keep one")
        done[row["key"]], lines[row["key"]] = (row["image"], row["question"]), number
    _mend_end(path)
    return done


def drop_replaced(path: Path, broken: Container[str]) -> None:
    """Drop, all at once, the errors that a later line of their key replaces, and those of lines that were mended.

    Args:
        path: file of answers; nothing is done where there is none, or it has no such error.
        broken: keys of the lines that are no questions; errors of other such lines go, as those were mended.
    """
    if not path.exists():
        return
    kept: dict[tuple[str, bool], tuple[bool, str]] = {}
    count = 0
    for _, text, row in _rows(path):
        count += 1
        answered = row["error"] is None
        key = row["key"], bool(row["question"])  # a question may have the key `line 2`, too
        if (row["question"] or row["key"] in broken) and (answered or not kept.get(key, (False, ""))[0]):
            kept[key] = answered, text
    _mend_end(path)
    if len(kept) < count:
        write_atomically(path.resolve(), "".join(text + "\n" for _, text in kept.values()))


def _rows(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Number, text and object of each line but a last one that was cut off; UsageError for one that is no answer."""
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip() and not _cut_off(line):
                if (row := _row(line)) is None:
                    which = f"line {number}" if line.endswith(b"\n") else "its last line"
                    raise UsageError(f"{path}: {which} is no answer; give another file")
                yield number, line.decode("utf-8").rstrip("\r\n"), row


def _row(line: bytes) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not all(isinstance(row.get(name), str) for name in ("key", "image", "question")):
        return None
    row.setdefault("error", None)
    return row if isinstance(row.get("answer") if row["error"] is None else row["error"], str) else None


def _mend_end(path: Path) -> None:
    """End the last line, or remove it where it was cut off; all others were checked before."""
    with open(path, "rb+") as file:
        last = b"\n"
        for line in file:
            last = line
        if last.endswith(b"\n"):
            return
        if _cut_off(last):
            file.truncate(file.tell() - len(last))
        else:
            file.write(b"\n")


def _cut_off(line: bytes) -> bool:
    """Whether it is the beginning of a line of answers; one that is JSON is whole, whatever it holds."""
    if line.endswith(b"\n") or not line.startswith(_BEGINNING[: len(line)]):
        return False
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return True
    return False
