"""Submissions: answers in the forms that official scripts and servers read, in files that are whole or not there."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from cropl.data.files import write_whole


def write_json(path: Path, value: Any) -> None:
    """One JSON value."""
    write_text(path, json.dumps(_whole(value)))


def write_lines(path: Path, rows: Iterable[Any]) -> None:
    """A JSON value on each line."""
    write_text(path, "".join(json.dumps(_whole(row)) + "\n" for row in rows))


def write_text(path: Path, text: str) -> None:
    """A file, with the folders above it; half a character, which a file cannot hold, is a question mark.

    Raises:
        ValueError: a folder is there, or a file where a folder has to be.
    """
    if path.is_dir():
        raise ValueError(f"{path}: a folder is there; name a file")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except (FileExistsError, NotADirectoryError):
        raise ValueError(f"{path.parent}: a file is there; name a folder") from None
    write_whole(path, _whole(text))


def _whole(value: Any) -> Any:
    """The same without halves of characters (lone surrogates), which are escapes in JSON and refused by servers."""
    match value:
        case str():
            return value.encode(errors="replace").decode()
        case dict():
            return {_whole(key): _whole(one) for key, one in value.items()}
        case list():
            return [_whole(one) for one in value]
    return value


def one_line(text: str) -> str:
    """For files of tabs and lines: a space in the place of either."""
    return text.translate({ord(mark): " " for mark in "\t\n\r"})


def number(id: str, benchmark: str) -> int:
    """The number that a server wants as an id.

    Raises:
        ValueError: it is none.
    """
    if not id.isdecimal():
        raise ValueError(f"{benchmark}: question {id!r} has no number, which a submission names it by")
    return int(id)
