"""Shards are hashed once, and again as soon as one of them was touched."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cropl.data import manifest
from cropl.data.manifest import Manifest, ShardError
from cropl.data.shards import ShardReader


@pytest.fixture
def hashed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """The files that were hashed, in order."""
    monkeypatch.setenv("CROPL_CACHE", str(tmp_path / "cache"))
    found: list[Path] = []
    real = manifest.sha256_of
    monkeypatch.setattr(manifest, "sha256_of", lambda path: found.append(path) or real(path))
    return found


def test_once_means_once(write_shards: Callable[..., Path], hashed: list[Path]) -> None:
    folder = write_shards()
    for _ in range(3):
        ShardReader(folder, verify="once")
    assert len(hashed) == 3  # each of the three shards
    ShardReader(folder, verify="full")
    assert len(hashed) == 6
    os.utime(folder / "samples-000001.tar", ns=(1, 1))
    ShardReader(folder, verify="once")
    assert len(hashed) == 9


def test_a_flipped_bit_is_found_even_under_the_old_time(write_shards: Callable[..., Path], hashed: list[Path]) -> None:
    folder = write_shards()
    shard = folder / "samples-000001.tar"
    data = bytearray(shard.read_bytes())
    data[700] ^= 4
    shard.write_bytes(data)
    for _ in range(2):  # what was found damaged is not remembered as sound
        with pytest.raises(ShardError, match=r"samples-000001\.tar: its SHA-256 differs"):
            ShardReader(folder, verify="once")


def test_a_cache_that_cannot_be_written_to_is_no_error(
    write_shards: Callable[..., Path], hashed: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_shards()
    monkeypatch.setenv("CROPL_CACHE", str(folder / "manifest.json"))
    ShardReader(folder, verify="once")
    ShardReader(folder, verify="once")
    assert len(hashed) == 6
    with pytest.raises(ShardError, match="one of off, size, once, full"):
        Manifest.read(folder).verify(folder, "all")  # type: ignore[arg-type]
