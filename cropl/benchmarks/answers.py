"""Files of answers as they are published: LLaVA's lines, and what benchmarks want to be handed in."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from cropl.benchmarks.base import AnswersError, Benchmark, Truth
from cropl.benchmarks.join import Names
from cropl.data.readers.rows import BadRow, json_lines, json_rows

IDS = ("question_id", "questionId", "qid", "key")


def read_answers(file: Path, benchmark: Benchmark, truths: Sequence[Truth] = ()) -> dict[str, str]:
    """Answers by the id of their question.

    A `.jsonl` has a line for each, any other file is a JSON list. With `text` (and `prompt`) an answer is a model's, as
    LLaVA writes it down, or with `key` one of `cropl answer`: it becomes what is submitted. With `prediction` (GQA's)
    or `answer` (VQA's) it was submitted already, and stays. Other forms are those of `Benchmark.submitted_rows`.

    Args:
        file: the answers, or a folder with them.
        benchmark: that they are to.
        truths: its questions, by whose other ids and order answers are known as well.

    Raises:
        ValueError: the file is missing, or a row is no answer; the message names it.
        AnswersError: a question is answered twice, or a row has the id of another one than it asks.
    """
    found: dict[str, str] = {}
    names = Names(benchmark, truths)
    for number, row in enumerate(_rows(file, benchmark, truths), start=1):
        try:
            id, text, prompt, raw = _read(row)
        except BadRow as error:
            raise ValueError(f"{file}: row {number} is no answer ({error})") from None
        known = names.find(id, prompt)
        if known is None and prompt and (other := names.find(id)) is not None:
            raise AnswersError(f"{file}: row {number} asks {prompt[:80]!r}, which is not the question {other}")
        known = known or benchmark.known_as(id, prompt)
        if known in found:
            raise AnswersError(f"{file}: row {number} is a second answer to {known}; keep one")
        found[known] = benchmark.submitted(text) if raw else text
    return found


def _rows(file: Path, benchmark: Benchmark, truths: Sequence[Truth]) -> Iterator[Any]:
    if not file.exists():
        raise ValueError(f"{file}: no such file of answers")
    own = benchmark.submitted_rows(file, truths)
    if own is not None:
        return own
    return json_lines(file) if file.suffix == ".jsonl" else json_rows(file)


def _read(row: Any) -> tuple[str, str, str, bool]:
    """Id, text, prompt, and whether the text is as the model gave it."""
    if isinstance(row, BadRow):
        raise row
    if not isinstance(row, dict):
        raise BadRow("not an object", repr(row)[:60])
    if "image" in row and "text" in row and "prompt" not in row:
        raise BadRow("a question: its text is the prompt")
    id = next((row[name] for name in IDS if name in row), None)
    name = next((name for name in ("text", "prediction", "answer") if name in row), "text")
    text, prompt = row.get(name), row.get("prompt", row.get("question", ""))
    if type(id) not in (int, str):
        raise BadRow(f"no {' or '.join(IDS)}", repr(id)[:60])
    if not isinstance(text, str):
        raise BadRow("no text, prediction or answer", repr(row.get("error", text))[:60])
    return str(id), text, prompt if isinstance(prompt, str) else "", name == "text" or "key" in row
