"""The files of `cropl answer`: lines of questions in, lines of answers out."""

from __future__ import annotations

import json
from collections.abc import Container, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from cropl.commands.answer_resume import Asked
from cropl.errors import UsageError
from cropl.grid import Region

Question = tuple[Any, str, str, str]
"""Image, or the error in its place; question; key; image as the line names it."""


def read_questions(lines: Iterable[bytes], images: Path, done: Container[str] = ()) -> Iterator[Question]:
    """The questions of a file or stream; a line that is none has its error instead, and a key like `line 2`.

    Args:
        lines: JSON objects (`image`, `question`, perhaps `key` or `question_id`), or image, question and perhaps a key
            between tabs; empty ones are passed over.
        images: folder of relative images.
        done: keys of questions that are left out.
    """
    return (question for _, question in _numbered(lines, images) if not question[1] or question[2] not in done)


def check_keys(file: BinaryIO, path: str, done: Mapping[str, Asked]) -> tuple[dict[str, int], set[str]]:
    """The keys of a file's questions, with their lines, and of lines that are none; the file is at its beginning again.

    Args:
        file: opened, see `read_questions`.
        path: its name.
        done: what the keys that are answered already asked.

    Raises:
        UsageError: two questions have the same key, or a key of `done` asks something else here.
    """
    found: dict[str, int] = {}
    broken: set[str] = set()
    for number, (_, question, key, image) in _numbered(file, Path()):
        if not question:
            broken.add(key)
            continue
        if key in found:
            raise UsageError(
                f"{path}:{number}: key {key!r} is also that of {path}:{found[key]}; give each question its own "
                "(without one, it is the number of its line)"
            )
        if key in done and done[key] != (image, question):
            raise UsageError(
                f"{path}:{number}: the answer to {key!r} is another question's ({done[key][1]!r} about {done[key][0]}):"
                " start a new file of answers"
            )
        found[key] = number
    file.seek(0)
    return found, broken


def _numbered(lines: Iterable[bytes], images: Path) -> Iterator[tuple[int, Question]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        key, name, question = f"line {number}", "", ""
        try:
            name, question, key = _parsed(line, str(number))
            image: Any = images / name
        except (ValueError, RecursionError) as error:
            image = ValueError(f"line {number} is no question: {error}")
        yield number, (image, question, key, name)


def _parsed(line: bytes, key: str) -> tuple[str, str, str]:
    text = line.decode("utf-8").rstrip("\r\n")
    if text.lstrip().startswith("{"):
        row = json.loads(text)
        named = row.get("key", row.get("question_id"))  # LLaVA's question files
        fields = [row.get("image"), row.get("question"), key if named is None else str(named)]
    else:
        fields = [*text.split("\t"), key][:3]
    if len(fields) < 3 or not all(isinstance(each, str) and each.strip() for each in fields):
        raise ValueError('expected {"image": "...", "question": "..."}, or image, tab, question')
    "".join(fields).encode("utf-8")  # JSON can name halves of characters, which no file of answers could hold
    return fields[0], fields[1], fields[2]


def row_of(result: Any, settings: Mapping[str, Any]) -> dict[str, Any]:
    """A line of answers. Without a region it has the full one, as every token was kept; with an error it has none."""
    _, question, key, name = result.pair
    region = None if result.error is not None else (result.region or Region.full()).as_tuple()
    return {
        "key": key,
        "image": name,
        "question": question,
        "answer": result.answer,
        "region": None if region is None else list(region),
        "kept": result.kept,
        "total": result.total,
        "fallback": result.fallback,
        "error": result.error,
        "settings": dict(settings),
        "seconds": {"localize": round(result.localize_seconds, 6), "answer": round(result.answer_seconds, 6)},
    }
