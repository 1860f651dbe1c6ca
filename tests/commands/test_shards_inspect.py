"""`cropl shards inspect` through the command line: the counts, and pictures that show what they should."""

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from cropl.cli import main
from cropl.commands.shards_inspect import choose, draw_histogram
from cropl.data.shards import ShardReader
from cropl.data.statistics import Counts, SourceCounts, count_samples
from cropl.data.writer import ShardWriter
from cropl.drawing import BOX, TRUE
from cropl.errors import USAGE
from cropl.grid import Region
from cropl.testbed.samples import samples
from tests.data.conftest import make_sample
from tests.data.conftest import write_shards as write_shards

Write = Callable[..., Path]


def inspect(*args: object) -> int:
    return main(["shards", "inspect", *map(str, args)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Twenty testbed samples, and two without an image or a box of a source with a difficult name."""
    with ShardWriter(tmp_path / "mixed", samples_per_shard=10) as writer:
        for sample in samples("test", 20):
            writer.write(sample)
        for number in range(2):
            text = replace(make_sample(number), image=None, width=0, height=0, boxes=[], region=Region.full())
            writer.write(
                replace(
                    text,
                    key=f"t{number}",
                    source="_[red]$x^\x1b[2J",
                    question="Why? " * 400,
                    followups=[("And?", "No.")],
                )
            )
    return tmp_path / "mixed"


def colours(path: Path) -> set[object]:
    with Image.open(path) as image:
        return {colour for _, colour in image.convert("RGB").getcolors(1 << 24) or []}


def test_counts_and_pictures(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert inspect(folder) == 0
    told = capsys.readouterr().out
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in told.splitlines() if line.startswith("│")]
    counts = count_samples([folder])
    region = f"{100 * (counts.sources['testbed'].mean_region or 0):.1f} %"
    assert rows[0][:5] == ["testbed", "20", "100.0 %", "100.0 %", region]
    assert rows[1][:5] == ["_[red]$x^?[2J", "2", "0.0 %", "0.0 %", "-"] and "\x1b" not in told
    assert rows[2][:5] == ["all", "22", "90.9 %", "90.9 %", region]
    width, height = counts.sizes[10]
    assert f"images: {width}x{height} (median), " in told
    assert f"shards: 3, {sum(path.stat().st_size for path in folder.glob('*.tar')) / 1e6:.1f} MB" in told
    out = folder.parent / "mixed-inspect"
    assert sorted(path.name for path in out.iterdir()) == ["regions.png", "samples.png"]
    assert {TRUE, BOX} <= colours(out / "samples.png")
    assert (0, 0x72, 0xB2) in colours(out / "regions.png")
    assert sorted(path.name for path in folder.iterdir())[0] == "manifest.json"  # nothing is written among the shards


def test_out_count_and_seed(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, flags in (("a", ["--seed", 1]), ("b", ["--seed", 1]), ("c", ["--seed", 2]), ("d", ["--count", 1])):
        assert inspect(folder, "-o", tmp_path / name, *flags) == 0
    a, b, c, d = ((tmp_path / name / "samples.png").read_bytes() for name in "abcd")
    assert a == b != c
    with Image.open(tmp_path / "d" / "samples.png") as image:
        assert image.width == 340


def test_samples_are_chosen_from_every_source(folder: Path, write_shards: Write) -> None:
    reader = ShardReader([folder, write_shards(100)])
    chosen = choose(reader, 8, seed=0)
    found = [reader.sources[reader.source_N[index]] for index in chosen]
    assert sorted(map(found.count, reader.sources)) == [2, 3, 3] and found == sorted(found)
    assert len(set(choose(reader, 1000, 0))) == len(reader) == 122
    assert choose(reader, 8, 0) == chosen != choose(reader, 8, 1)


def test_names_are_whole_without_a_terminal(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    name = "llava-instruct-conversations-of-pictures"
    with ShardWriter(tmp_path / "long") as writer:
        writer.write(replace(make_sample(0), source=name))
    assert inspect(tmp_path / "long") == 0
    assert name in capsys.readouterr().out


def test_text_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = replace(make_sample(0), image=None, width=0, height=0, boxes=[], region=Region.full(), answers=[])
    with ShardWriter(tmp_path / "text") as writer:
        writer.write(text)
    assert inspect(tmp_path / "text") == 0
    assert "images:" not in capsys.readouterr().out
    assert (tmp_path / "text-inspect" / "regions.png").exists()


def test_many_sources_are_one_colour_each_and_the_rest_is_other(tmp_path: Path) -> None:
    blocks = [0] * 65
    blocks[5] = 3
    sources = {f"source {i}": SourceCounts(3, 3, 3, 9, blocks) for i in range(12)}
    draw_histogram(Counts(sources, [(8, 8)] * 36, 1, 1), tmp_path / "many.png")
    assert (0x9A, 0xA0, 0xAC) in colours(tmp_path / "many.png")
    draw_histogram(Counts(dict(list(sources.items())[:8]), [], 1, 1), tmp_path / "few.png")
    assert (0x9A, 0xA0, 0xAC) not in colours(tmp_path / "few.png")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--count", "0"], "--count 0: must be 1 to 200"),
        (["--count", "201"], "--count 201"),
        (["--count", "x"], "invalid int value"),
        (["-o", "manifest.json"], "is a file"),
        ([], "--out is needed"),
        (["-o", "/proc/x"], "cannot be made"),
    ],
)
def test_arguments(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], flags: list[str], says: str
) -> None:
    monkeypatch.chdir(folder)
    assert inspect("https://localhost/x" if not flags else ".", *flags) == USAGE
    error = capsys.readouterr().err
    assert error.startswith("cropl: error: ") and says in error


def test_damage_is_told(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "samples-000001.tar").write_bytes(b"")
    assert inspect(folder) == USAGE
    assert "samples-000001.tar: 0 bytes" in capsys.readouterr().err
    assert inspect(folder.parent) == USAGE
    assert "no manifest" in capsys.readouterr().err


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_parent_that_is_read_only(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder.parent.chmod(0o500)
    try:
        assert inspect(folder) == USAGE
        assert "cannot be made: permission denied; give another" in capsys.readouterr().err
    finally:
        folder.parent.chmod(0o700)
