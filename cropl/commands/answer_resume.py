"""Answers that a file has already: which questions they leave, and one line for each key in the end.

New lines are only ever appended, so that whoever is stopped loses nothing; a line that had an error stands until a
newer one of its key is there, and the file is then replaced as a whole.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from cropl.errors import UsageError
from cropl.evaluation.files import write_atomically

Asked = tuple[str, str]
"""Image, as its line names it, and question."""

_BEGINNING = b'{"key": "'  # of every line that `cropl answer` writes


def read_done(path: Path) -> dict[str, Asked]:
    """What the answered keys asked. A last line that was cut off is removed; those with an error are not done.

    Raises:
        UsageError: a line is no answer, or a key has two.
    """
    if not path.exists():
        return {}
    _mend_end(path)
    done: dict[str, Asked] = {}
    lines: dict[str, int] = {}
    for number, _, row in _rows(path):
        if row["error"] is not None:
            continue
        if row["key"] in lines:
            raise UsageError(f"{path}:{number}: key {row['key']!r} has an answer at line {lines[row['key']]}; keep one")
        done[row["key"]], lines[row["key"]] = (row["image"], row["question"]), number
    return done


def drop_replaced(path: Path, asked: Mapping[str, int]) -> None:
    """Drop, all at once, the errors that a later line of their key replaces, and those of lines that were mended.

    Args:
        path: file of answers; nothing is done where there is none, or it has no such error.
        asked: the keys of the questions. A line without a question has that of its number, which goes as it is mended.
    """
    if not path.exists():
        return
    _mend_end(path)
    kept: dict[str, tuple[bool, str]] = {}
    count = 0
    for _, text, row in _rows(path):
        count += 1
        answered = row["error"] is None
        if (row["question"] or row["key"] in asked) and (answered or not kept.get(row["key"], (False, ""))[0]):
            kept[row["key"]] = answered, text
    if len(kept) < count:
        write_atomically(path.resolve(), "".join(text + "\n" for _, text in kept.values()))


def _rows(path: Path) -> Iterator[tuple[int, str, dict[str, Any]]]:
    """Number, text and object of each line; UsageError for one that is no answer."""
    with open(path, "rb") as lines:
        for number, line in enumerate(lines, start=1):
            if line.strip():
                if (row := _row(line)) is None:
                    raise UsageError(f"{path}: line {number} is no answer; give another file")
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
    """End the last line, or remove it where it was cut off."""
    with open(path, "rb+") as file:
        last = b"\n"
        for line in file:
            last = line
        if last.endswith(b"\n"):
            return
        if _row(last) is not None:
            file.write(b"\n")
        elif last.startswith(_BEGINNING[: len(last)]):
            file.truncate(file.tell() - len(last))
        else:
            raise UsageError(f"{path}: its last line is no answer; give another file")
