"""The files of `cropl answer`: lines of questions in, lines of answers out, as many as there are of them so far."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from cropl.errors import UsageError
from cropl.grid import Region

Question = tuple[Any, str, str, str]
"""Image, or the error in its place; question; key; image as the line names it."""


def read_questions(lines: Iterable[bytes], images: Path, done: Mapping[str, str] | None = None) -> Iterator[Question]:
    """The questions of a file or stream; a line that is none comes with its error.

    Args:
        lines: JSON objects, or image, question and perhaps a key between tabs; empty ones are passed over.
        images: folder of relative images.
        done: keys that are left out, with their questions.

    Raises:
        UsageError: a key of `done` has another question here.
    """
    done = done or {}
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        key, name, question = str(number), "", ""
        try:
            name, question, key = _parsed(line, key)
            image: Any = images / name
        except (ValueError, RecursionError) as error:
            image = ValueError(f"line {number} is no question: {error}")
        if key not in done:
            yield image, question, key, name
        elif done[key] != question:
            raise UsageError(f"line {number}: the answer to {key!r} is another question's: start a new file of answers")


def _parsed(line: bytes, key: str) -> tuple[str, str, str]:
    text = line.decode("utf-8").rstrip("\r\n")
    if text.lstrip().startswith("{"):
        row = json.loads(text)
        fields = [row.get("image"), row.get("question"), str(row.get("key", key))]
    else:
        fields = [*text.split("\t"), key][:3]
    if len(fields) < 3 or not all(isinstance(each, str) and each.strip() for each in fields):
        raise ValueError('expected {"image": "...", "question": "..."}, or image, tab, question')
    return fields[0], fields[1], fields[2]


def read_done(path: Path) -> dict[str, str]:
    """Key and question of every answer that is there; a last line that was cut off is removed.

    Raises:
        UsageError: a line is no answer.
    """
    if not path.exists():
        return {}
    done: dict[str, str] = {}
    whole = 0
    with open(path, "rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            try:
                row = json.loads(line)
                done[row["key"]] = row["question"]
            except (ValueError, KeyError, TypeError):
                raise UsageError(f"{path}: line {number} is no answer; give another file") from None
            whole += len(line)
    with open(path, "rb+") as file:
        file.truncate(whole)
    return done


def count_lines(file: BinaryIO) -> int:
    """Lines that are not empty; the file stands at its beginning again."""
    found = sum(bool(line.strip()) for line in file)
    file.seek(0)
    return found


def row_of(result: Any) -> dict[str, Any]:
    """A line of answers. Without a region it has the full one: every token was kept."""
    _, question, key, name = result.pair
    return {
        "key": key,
        "image": name,
        "question": question,
        "answer": result.answer,
        "region": list((result.region or Region.full()).as_tuple()),
        "kept": result.kept,
        "total": result.total,
        "fallback": result.fallback,
        "error": result.error,
        "seconds": {"localize": round(result.localize_seconds, 6), "answer": round(result.answer_seconds, 6)},
    }
