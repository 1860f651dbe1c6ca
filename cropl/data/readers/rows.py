"""Published files, row by row: JSON that is streamed, since some have hundreds of megabytes, and lines of JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import ijson


class BadRow(ValueError):
    """A row that cannot be used.

    Args:
        reason: a few words that many rows can share, to be counted by: "no question".
        detail: what is in this row.
    """

    def __init__(self, reason: str, detail: object = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail != "" else reason)
        self.reason, self.detail = reason, str(detail)


def json_rows(path: Path, at: str = "item") -> Iterator[Any]:
    """Rows of a `.jsonl` file, or of a list in a JSON file, streamed.

    Args:
        path: the file.
        at: where the list lies, in ijson's notation: `item` is a list at the top, `questions.item` one under a key.

    Raises:
        ValueError: the file is missing, empty, or breaks off.
    """
    if path.suffix == ".jsonl":
        return json_lines(path)
    nothing = f"no rows at {at!r}; is this the right file?"
    return streamed(path, lambda file: ijson.items(file, at, use_float=True), nothing)


def streamed(path: Path, parse: Callable[[BinaryIO], Iterable[Any]], nothing: str) -> Iterator[Any]:
    """Rows of a JSON file as ijson finds them.

    Args:
        path: the file.
        parse: one of ijson's functions, with what it looks for.
        nothing: what is said if it finds no row.

    Raises:
        ValueError: the file is missing, breaks off, or has no row.
    """
    _check_there(path)
    found = False
    try:
        with open(path, "rb") as file:
            for row in parse(file):
                found = True
                yield row
    except (ijson.JSONError, UnicodeDecodeError) as error:
        raise _not_json(path, error) from None
    if not found:
        raise ValueError(f"{path}: {nothing}")


def json_lines(path: Path) -> Iterator[Any]:
    """Rows of a file with one JSON value per line, whatever its name ends in; a line that is not JSON is a `BadRow`.

    Raises:
        ValueError: the file is missing or empty.
    """
    _check_there(path)
    found = False
    with open(path, "rb") as file:
        for line in file:
            if line.strip():
                found = True
                try:
                    yield json.loads(line)
                except (ValueError, RecursionError) as error:
                    yield BadRow("not JSON", error)
    if not found:
        raise ValueError(f"{path}: the file is empty")


def json_object(path: Path, nothing: str) -> dict[str, Any]:
    """The JSON object that a file is, read whole.

    Args:
        path: the file.
        nothing: what is said if it is no object, or an empty one.

    Raises:
        ValueError: the file is missing, breaks off, or is no such object.
    """
    _check_there(path)
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise _not_json(path, error) from None
    if not isinstance(content, dict) or not content:
        raise ValueError(f"{path}: {nothing}")
    return content


def _check_there(path: Path) -> None:
    if not path.is_file():
        raise ValueError(f"{path}: no such annotation file")


def _not_json(path: Path, error: Exception) -> ValueError:
    return ValueError(f"{path}: not JSON, or cut off ({' '.join(str(error).split())[:120]})")
