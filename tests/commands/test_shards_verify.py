"""`cropl shards verify` through the command line."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cropl.cli import main
from cropl.errors import FAILED, USAGE
from tests.data.conftest import write_shards as write_shards

Write = Callable[..., Path]


def verify(*args: object) -> int:
    return main(["shards", "verify", *map(str, args)])


@pytest.mark.parametrize("flags", [[], ["--images"]])
def test_sound_shards(write_shards: Write, capsys: pytest.CaptureFixture[str], flags: list[str]) -> None:
    one, two = write_shards(10, 4, "one"), write_shards(1001, 1000, "two")
    size = sum(path.stat().st_size for folder in (one, two) for path in folder.glob("*.tar")) / 1e6
    assert verify(one, two, *flags) == 0
    told = capsys.readouterr()
    assert told.out == f"5 shards, 1,011 samples, {size:.1f} MB: sound\n"
    assert [line.rpartition(" in ")[0] for line in told.err.splitlines()] == [
        "verify one: 3 of 3",
        "verify two: 2 of 2",
    ]


def test_one_line_for_each_fault(write_shards: Write, capsys: pytest.CaptureFixture[str]) -> None:
    folder, other = write_shards(), write_shards(1, name="other")
    shard = folder / "samples-000000.tar"
    shard.write_bytes(shard.read_bytes()[:6000])
    (folder / "samples-000002.tar").unlink()
    (folder / "extra.tar").write_bytes(b"")
    assert verify(folder, other) == FAILED
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 4 and lines[0].startswith(f"{shard}: 6,000 bytes, the manifest says")
    assert lines[1] == f"{folder / 'samples-000002.tar'}: the shard is missing; restore it or build the shards again"
    assert lines[2] == f"note: {folder / 'extra.tar'}: the manifest does not name it; it is never read"
    assert lines[3] == "2 of 4 shards are damaged"
    (folder / "samples-000002.tar").write_bytes(b"<html>")
    (other / "samples-000000.tar").write_bytes(b"")
    assert verify(other) == FAILED
    assert capsys.readouterr().out.splitlines()[-1] == "1 of 1 shard is damaged"


def test_a_note_is_no_fault(write_shards: Write, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_shards()
    (folder / "extra.tar").write_bytes(b"")
    assert verify(folder) == 0
    assert capsys.readouterr().out.startswith(f"note: {folder / 'extra.tar'}: ")


def test_a_manifest_that_cannot_be_used(write_shards: Write, capsys: pytest.CaptureFixture[str]) -> None:
    folder = write_shards()
    (folder / "manifest.json").write_text("{}")
    assert verify(folder) == FAILED
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{folder / 'manifest.json'}: schema None") and lines[1] == "1 manifest cannot be used"
    (folder / "samples-000001.tar").write_bytes(b"")
    assert verify(folder) == FAILED
    assert capsys.readouterr().out.splitlines()[-1] == "1 of 3 shards is damaged; 1 manifest cannot be used"


def test_what_is_not_there_hides_no_damage(write_shards: Write, capsys: pytest.CaptureFixture[str]) -> None:
    folder, lost = write_shards(), ["nowhere", "https://host/x"]
    assert verify(folder, *lost) == FAILED
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "nowhere: no such folder" and lines[1].startswith("https://host/x: only local folders")
    assert lines[2].startswith("3 shards, 10 samples, ") and lines[2].endswith("sound; 2 folders cannot be verified")
    (folder / "samples-000002.tar").unlink()
    assert verify("nowhere", folder) == FAILED
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{folder / 'samples-000002.tar'}: the shard is missing")
    assert lines[1:] == ["nowhere: no such folder", "1 of 3 shards is damaged; 1 folder cannot be verified"]


@pytest.mark.parametrize(
    ("args", "says"),
    [
        (["nowhere"], "nowhere: no such folder"),
        (["."], "manifest.json: no manifest"),
        (["nowhere", "none"], "nowhere: no such folder; none: no such folder"),
        (["https://host/shards/?sig=x"], "error: https://host/shards/: only local folders are verified"),
        ([], "required: DIR"),
        ([".", "--fast"], "unrecognized arguments: --fast"),
    ],
)
def test_nothing_to_verify(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], args: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    assert verify(*args) == USAGE
    told = capsys.readouterr()
    assert told.err.startswith("cropl: error: ") and says in told.err and told.err.count("\n") == 1 and not told.out


def test_help(capsys: pytest.CaptureFixture[str]) -> None:
    assert verify("--help") == 0
    assert "Exit code 0: sound" in capsys.readouterr().out
