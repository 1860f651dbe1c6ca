"""Hostile manifests and records whose hashes and fingerprints agree: refused by name, or an error of one sample."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cropl.data.manifest import Manifest, ShardError
from cropl.data.shards import ShardReader
from cropl.data.verify import verify_folder
from tests.attacks.forged import member, seal
from tests.data.conftest import make_sample
from tests.data.conftest import write_shards as write_shards

Write = Callable[..., Path]


def test_sealing_alone_changes_nothing(write_shards: Write) -> None:
    folder = write_shards()
    before = Manifest.read(folder)
    seal(folder)
    assert Manifest.read(folder) == before and verify_folder(folder, images=True) == []


def shard_field(name: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda record: record["shards"][0].__setitem__(name, value)


def entry_field(column: int, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda record: record["shards"][0]["index"][1].__setitem__(column, value)


HUGE = 10**30
NUMBERS: list[Any] = [-1, HUGE, True, 1.0, "1", None, []]
MANIFESTS: dict[str, Callable[[dict[str, Any]], None]] = {
    "a path upwards": shard_field("file", "../secret.tar"),
    "an absolute path": shard_field("file", "/etc/secret.tar"),
    "a folder": shard_field("file", "a/b.tar"),
    "a hidden file": shard_field("file", ".part.tar"),
    "a command": shard_field("file", "pipe:cat x.tar"),
    "a shard twice": shard_field("file", "samples-000001.tar"),
    "no name": shard_field("file", None),
    "another type of size": shard_field("bytes", "10"),
    "true for a size": shard_field("bytes", True),
    "a fraction for a size": shard_field("bytes", 1.5e12),
    "no hash": shard_field("sha256", None),
    "no samples": lambda record: record["shards"][0].update(index=[], samples=0),
    "another count": shard_field("samples", 5),
    "an object for an index": shard_field("index", {"a": 1}),
    "a text for an index": shard_field("index", "index"),
    "an empty row": lambda record: record["shards"][0]["index"][1].clear(),
    "a short row": lambda record: record["shards"][0]["index"][1].pop(),
    "a long row": lambda record: record["shards"][0]["index"][1].append(1),
    "a key twice": entry_field(0, "s0000"),
    "a key twice in another shard": entry_field(0, "s0009"),
    "a dotted key": entry_field(0, "img_1.5x"),
    "a key that is a path": entry_field(0, "../s0001"),
    "a key that is absolute": entry_field(0, "/s0001"),
    "a key that ends the line": entry_field(0, "s0001\n"),
    "a number for a key": entry_field(0, 1),
    "an unknown source": entry_field(1, 1),
    "a negative source": entry_field(1, -1),
    "true for a source": entry_field(1, False),
    "a huge source": entry_field(1, HUGE),
    "a pickle for an image": entry_field(2, "pyd"),
    "a path for an image": entry_field(2, "../png"),
    "the record for an image": entry_field(2, "json"),
    "a number for an image": entry_field(2, 7),
    "half an image": entry_field(2, ""),
    "an offset beyond the file": entry_field(3, 1 << 20),
    "a record beyond the file": entry_field(6, 1 << 20),
    "a member of 300 MB": entry_field(4, 300_000_000),
    "no shards": lambda record: record.update(shards=[], samples=0),
    "null for shards": lambda record: record.update(shards=None),
    "a text for shards": lambda record: record.update(shards="shards"),
    "no sources": lambda record: record.update(sources=[]),
    "another schema": lambda record: record.update(schema=1),
    "no schema": lambda record: record.pop("schema"),
    "a total that is wrong": lambda record: record.update(samples=11),
} | {f"{value!r:.9} for a number {column}": entry_field(column, value) for column in range(3, 12) for value in NUMBERS}


@pytest.mark.parametrize("name", MANIFESTS)
def test_a_hostile_manifest_is_refused(write_shards: Write, name: str) -> None:
    folder = write_shards()
    (folder.parent / "secret.tar").write_bytes((folder / "samples-000000.tar").read_bytes())
    seal(folder, MANIFESTS[name])
    with pytest.raises(ShardError, match=r"manifest\.json: (damaged manifest|schema|its fingerprint)"):
        ShardReader(folder, verify="full")
    (fault,) = verify_folder(folder)
    assert fault.file == "manifest.json"


@pytest.mark.parametrize(
    "text", ["", "null", "[]", "{}", "[" * 100_000, '{"schema": 3}', "\ud800", '{"schema":3,"a":NaN']
)
def test_a_manifest_that_is_none(write_shards: Write, text: str) -> None:
    folder = write_shards()
    (folder / "manifest.json").write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ShardError, match=r"manifest\.json: "):
        ShardReader(folder)


@pytest.mark.parametrize(
    "record",
    [b"[" * 100_000, b"[]", b"null", b"\xff", b"{" + b'"schema":2,' * 9000, b'{"schema":2,"boxes":[[' + b"9" * 999],
)
def test_a_hostile_record_is_an_error_of_its_sample(write_shards: Write, record: bytes) -> None:
    assert_bad_record(write_shards(), record)


def test_endless_numbers_in_a_record(write_shards: Write) -> None:
    content = make_sample(0).to_json()
    for value in ({"boxes": [[10**400, 0, 1, 1]]}, {"width": 10**400}, {"region": [0, 0, 10**400, 1]}):
        assert_bad_record(write_shards(name=next(iter(value))), json.dumps(content | value).encode())


def assert_bad_record(folder: Path, record: bytes) -> None:
    """A shard whose first record is replaced, with a manifest that agrees: told as an error, nothing else."""
    entry = Manifest.read(folder).shards[0].entries[0]
    old = (folder / "samples-000000.tar").read_bytes()
    image = old[entry.image_offset :][: entry.image_bytes]
    new = member("s0000.json", record)
    at = 2 * 512 - len(new)  # what follows moves by this much
    (folder / "samples-000000.tar").write_bytes(new + old[1024:])

    def change(manifest: dict[str, Any]) -> None:
        for row in manifest["shards"][0]["index"]:
            row[3] -= at
            row[5] -= at if row[0] != "s0000" else 0
        manifest["shards"][0]["index"][0][6] = len(record)

    seal(folder, change)
    reader = ShardReader(folder, verify="full")
    assert reader.record(0)["png"] == image and reader[1].key == "s0001"
    with pytest.raises(ShardError, match=r"samples-000000\.tar: sample 's0000'"):
        reader[0]
    (fault,) = verify_folder(folder, images=True)
    assert fault.message.startswith("sample 's0000': ")
