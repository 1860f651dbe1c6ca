"""What all readers share: ids that come again, and JSON files that break off, whichever way they are read."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from cropl.data.readers.base import Annotation, Rejected, unique_ids
from cropl.data.readers.gqa import Gqa
from cropl.data.readers.rows import json_rows


def numbered(*published: str) -> list[str]:
    rows = [Annotation(id, "q", ("a",), "s", "train") for id in published]
    return [one.id for one in unique_ids(rows) if isinstance(one, Annotation)]


def test_ids_that_come_again_get_the_next_free_number() -> None:
    assert numbered("x", "y", "x", "x", "y") == ["x", "y", "x-2", "x-3", "y-2"]
    assert numbered("x-2", "x", "x", "x-2", "x") == ["x-2", "x", "x-3", "x-2-2", "x-4"]
    assert list(unique_ids([Rejected("row 1", "bad")])) == [Rejected("row 1", "bad")]


def test_one_id_for_all_rows_takes_no_longer() -> None:
    started = time.monotonic()
    assert numbered(*["x"] * 5000) == ["x", *(f"x-{i}" for i in range(2, 5001))]
    assert time.monotonic() - started < 2  # going through all numbers again for each row takes ten times as long


@pytest.mark.parametrize("read", [json_rows, lambda path: Gqa(path, split="test").rows()])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no such annotation file"),
        (b"", "not JSON, or cut off"),
        (b'[{"a": 1}, {"b"', "not JSON, or cut off"),
        (b'{"a": {"b": 1}, "c', "not JSON, or cut off"),
        (b'["\xff\xfe"]', "not JSON, or cut off"),
        (b'"text"', "is this "),
    ],
)
def test_files_that_cannot_be_read(
    tmp_path: Path, read: Callable[[Path], Iterator[Any]], content: bytes | None, message: str
) -> None:
    path = tmp_path / "rows.json"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError, match=f"rows.json: .*{message}"):
        list(read(path))
