"""What `inspect` counts, on samples whose counts are known."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from cropl.data.manifest import Manifest, ShardError
from cropl.data.sample import Sample
from cropl.data.statistics import SourceCounts, count_samples
from cropl.data.writer import ShardWriter
from cropl.grid import Region
from tests.data.conftest import make_sample

Write = Callable[..., Path]


def small() -> list[Sample]:
    one, two, three, four = (make_sample(number) for number in (0, 1, 2, 3))
    return [
        replace(one, source="a", region=Region(0, 0, 1, 1)),  # 4 blocks
        replace(two, source="a", region=Region.full()),  # 64 blocks
        replace(three, source="b", boxes=[], region=Region.full()),
        replace(four, source="a", image=None, width=0, height=0, boxes=[], region=Region.full(), answers=[]),
    ]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    with ShardWriter(tmp_path / "small", samples_per_shard=3) as writer:
        for sample in small():
            writer.write(sample)
    return tmp_path / "small"


def test_counts(folder: Path) -> None:
    counts = count_samples([folder])
    assert list(counts.sources) == ["a", "b"]
    a, b = counts.sources.values()
    assert (a.samples, a.images, a.boxed, a.characters) == (3, 2, 2, 12 + 12 + 11)
    assert [(size, count) for size, count in enumerate(a.blocks) if count] == [(4, 1), (64, 1)]
    assert a.mean_region == (4 + 64) / 2 / 64
    assert (b.samples, b.images, b.boxed) == (1, 1, 0) and b.mean_region is None and not any(b.blocks)
    assert counts.sizes == [(8, 6), (8, 7), (8, 8)]
    assert counts.shards == 2 and counts.bytes == sum(path.stat().st_size for path in folder.glob("*.tar"))
    assert counts.total == SourceCounts(4, 3, 2, 12 + 12 + 12 + 11, a.blocks)


def test_several_folders(folder: Path, write_shards: Write) -> None:
    counts = count_samples([folder, write_shards(7, name="more")])
    assert list(counts.sources) == ["numbers", "a", "b"] and counts.total.samples == 11 and counts.shards == 4


def test_a_record_without_a_region(folder: Path) -> None:
    entry = Manifest.read(folder).shards[0].entries[0]
    path = folder / Manifest.read(folder).shards[0].file
    data = path.read_bytes()
    path.write_bytes(data[: entry.json_offset] + b"x" + data[entry.json_offset + 1 :])
    with pytest.raises(ShardError, match=r"000000\.tar: sample 's0000': its record holds no region"):
        count_samples([folder])
