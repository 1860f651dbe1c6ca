"""Damaged and hostile shards: found and named before a sample is read; nothing in them runs, swells or leads away."""

import bz2
import gzip
import io
import json
import os
import pickle
import re
import tarfile
import time
import tracemalloc
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import webdataset
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cropl.data.manifest import ShardError
from cropl.data.shards import ShardReader
from cropl.data.tarball import index_shard
from cropl.data.verify import verify_folder
from cropl.data.writer import ShardWriter
from cropl.grid import Region
from tests.attacks.forged import member, seal
from tests.data.conftest import make_sample
from tests.data.conftest import write_shards as write_shards

Write = Callable[..., Path]
SHARD = "samples-000001.tar"
HEADER, PAYLOAD = 2048, 2048 + 512
"""Where the first member of a shard's second sample begins, and its bytes (every member fills one block)."""


def insert(name: str, **options: Any) -> Callable[[bytes], bytes]:
    """Damage that puts a further member between two samples."""
    return lambda data: data[:HEADER] + member(name, **options) + data[HEADER:]


def overwrite(at: int, new: bytes) -> Callable[[bytes], bytes]:
    """Damage that leaves the size as it is."""
    return lambda data: data[:at] + new + data[at + len(new) :]


FAULTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "cut in a payload": (lambda data: data[: PAYLOAD + 30], r"cut off inside 's0005\.json'"),
    "cut between members": (lambda data: data[: HEADER + 1024], "cut off between two members, in or after .*'s0005'"),
    "cut between samples": (lambda data: data[:HEADER], "cut off between two members, in or after sample 's0004'"),
    "cut in a header": (lambda data: data[: HEADER + 99], "cut off inside the header at byte 2,048"),
    "cut before the end": (lambda data: data[:8192], "cut off between two members.*'s0007'"),
    "garbage for a header": (overwrite(HEADER, b"\xa5" * 512), "no valid header at byte 2,048"),
    "zeros for a header": (overwrite(HEADER, bytes(512)), "data follows: a header was wiped out"),
    "zeros for everything": (lambda data: bytes(len(data)), "begins with zeros"),
    "garbage after the end": (lambda data: data[:-1] + b"x", "data follows"),
    "joined shards": (lambda data: data * 2, "data follows.*joined"),
    "zero bytes": (lambda data: b"", "zero bytes"),
    "an HTML page": (lambda data: b"<!doctype html><title>404</title>", "HTML or XML page.*download failed"),
    "gzip": (gzip.compress, "compressed with gzip.*plain tar"),
    "bzip2": (bz2.compress, "compressed with bzip2"),
    "a key twice": (insert("s0004.jpg"), "it needs one json and at most one image"),
    "a member twice": (insert("s0004.json"), "there twice"),
    "a key of another sample": (lambda data: data[:-2048] + member("s0004.jpg") + bytes(1024), "'s0004' came before"),
    "a dotted key": (insert("img_1.5x.jpg"), "a dot ends the key"),
    "a path upwards": (insert("../../s1.json"), "no path"),
    "an absolute path": (insert("/etc/s1.json"), "no path"),
    "a key of 10 kB": (insert("s" * 10_000 + ".json"), "GNU long name"),
    "a NUL in a key": (insert("s1\0.json"), "only jpg, png"),
    "capital letters": (insert("s1.JPG"), "small letters"),
    "another script": (insert("bild-ü.json"), "letters, digits"),
    "no record": (insert("s1.jpg"), "'s1' has jpg; it needs one json"),
    "an unknown member": (insert("s1.txt"), "only jpg, png"),
    "a symbolic link": (insert("s1.json", kind=tarfile.SYMTYPE, data=b""), "a symbolic link"),
    "a hard link": (insert("s1.json", kind=tarfile.LNKTYPE, data=b""), "a hard link"),
    "a device": (insert("s1.json", kind=tarfile.CHRTYPE, data=b""), "a device"),
    "a sparse file": (insert("s1.json", kind=tarfile.GNUTYPE_SPARSE), "a sparse file"),
    "a PAX header": (insert("s1", kind=tarfile.XHDTYPE, data=b"19 path=../../a.png\n"), "a PAX header"),
    "10 GB": (insert("s1.json", size=10_000_000_000), "claims 10,000,000,000 bytes"),
    "more than there is": (insert("s1.json", size=250_000_000), r"cut off inside 's1\.json'"),
    "fewer than no bytes": (insert("s1.json", size=-512), "claims -512 bytes"),
} | {
    f"a {suffix} member": (insert(f"s1.{suffix}", data=b"x"), "never decoded")
    for suffix in ("pyd", "pkl", "pickle", "pth", "npy", "gz", "json.gz", "pyd.gz")
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_named_and_the_reader_refuses(write_shards: Write, name: str) -> None:
    folder = write_shards(12)
    shard = folder / SHARD
    damage, message = FAULTS[name]
    data = shard.read_bytes()
    shard.write_bytes(damage(data))
    (fault,) = verify_folder(folder)
    assert fault.file == SHARD
    with pytest.raises(ShardError, match=message) as error:
        index_shard(shard)
    about = str(error.value).removeprefix(f"{shard}: ")
    sizes = f"{shard.stat().st_size:,} bytes, the manifest says {len(data):,}; "
    assert fault.message == ("" if shard.stat().st_size == len(data) else sizes) + about
    with pytest.raises(ShardError, match=rf"samples-000001\.tar: .*(SHA-256|bytes, the manifest says {len(data):,};)"):
        ShardReader(folder, verify="full")


class Payload:
    """Leaves a file behind when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return (os.mkdir, (str(self.path),))


@pytest.mark.parametrize("suffix", ["pyd", "pickle", "pkl", "pth", "pyd.gz"])
def test_a_pickle_never_runs(write_shards: Write, tmp_path: Path, suffix: str) -> None:
    ran = tmp_path / "ran"
    payload = pickle.dumps(Payload(ran))
    data = gzip.compress(payload) if suffix.endswith("gz") else payload
    folder = write_shards(12)
    shard = folder / SHARD
    shard.write_bytes(insert(f"s0004.{suffix}", data=data)(shard.read_bytes()))
    seal(folder)  # even if whoever made it wrote the manifest as well
    reader = ShardReader(folder, verify="full")
    assert [reader[index].key for index in range(4)] == ["s0000", "s0001", "s0002", "s0003"]
    assert set(reader.record(4)) == {"__key__", "__url__", "png", "json"}
    (fault,) = verify_folder(folder, images=True)
    assert fault.file == SHARD and "never decoded" in fault.message
    assert not ran.exists()
    pickle.loads(payload)
    assert ran.exists()  # the payload is a real one


@pytest.mark.parametrize("where", ["shard", "member", "record"])
def test_a_bomb_is_never_inflated(write_shards: Write, where: str) -> None:
    zeros = gzip.compress(bytes(200_000_000), 9)
    folder = write_shards(12)
    shard = folder / SHARD
    data = shard.read_bytes()
    if where == "shard":
        shard.write_bytes(zeros)
    elif where == "member":
        shard.write_bytes(insert("s0004.json.gz", data=zeros)(data))
    else:
        shard.write_bytes(overwrite(512, gzip.compress(b"0" * 9)[:20])(data))
    tracemalloc.start()
    began = time.perf_counter()
    (fault,) = verify_folder(folder, images=True)
    took, (_, peak) = time.perf_counter() - began, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert fault.file == SHARD and peak < 20_000_000 and took < 10


@pytest.mark.parametrize(
    "name", ["a#b", "a?b=1", "a%20b", "a b", "a::b", "a{0..3}", "a,b", "$HOME", "~", "ünï", "http:x"]
)
def test_any_path_opens_the_file_it_names(write_shards: Write, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    decoy = re.split(r"[#?% :{,]", name)[0]  # where a reader that took it for a URL or a pattern would look
    if decoy != name:
        write_shards(3, name=decoy)
    folder = write_shards(7, name=name)
    monkeypatch.chdir(folder.parent)
    for path in (folder, name):
        reader = ShardReader(path, verify="full")
        assert len(reader) == 7 and reader[6].key == "s0006" and verify_folder(path, images=True) == []


def test_an_unmodified_webdataset_reads_what_we_write(tmp_path: Path) -> None:
    samples = [make_sample(number) for number in range(7)]
    for number in (0, 3, 6):
        samples[number] = replace(
            samples[number], image=None, width=0, height=0, boxes=[], region=Region.full(), source="text"
        )
    buffer = io.BytesIO()
    samples[4].image.save(buffer, "WEBP", lossless=True)  # type: ignore[union-attr]
    samples[4].image = buffer.getvalue()
    samples[5] = replace(samples[5], key="k" * 95)
    with ShardWriter(tmp_path, samples_per_shard=3) as writer:
        for sample in samples:
            writer.write(sample)
    urls = sorted(map(str, tmp_path.glob("*.tar")))
    found = list(webdataset.WebDataset(urls, shardshuffle=False).decode("pilrgb"))
    assert [one["__key__"] for one in found] == [sample.key for sample in samples]
    assert [one["json"] for one in found] == [sample.to_json() for sample in samples]
    for one, ours in zip(found, ShardReader(tmp_path, verify="full")):  # type: ignore[call-overload]
        image = one.get("png", one.get("webp"))
        assert (image is None) == (ours.image is None)
        assert image is None or image.tobytes() == ours.image.tobytes()
    assert [bool(set(one) & {"png", "webp"}) for one in found] == [s.image is not None for s in samples]


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sound")
    with ShardWriter(folder, samples_per_shard=2) as writer:
        for number in range(4):
            writer.write(make_sample(number))
    return folder


@settings(max_examples=300, suppress_health_check=[HealthCheck.too_slow])
@given(data=st.data())
def test_any_change_is_found(sound: Path, data: st.DataObject) -> None:
    path = data.draw(st.sampled_from(sorted(sound.iterdir())))
    good = path.read_bytes()
    place = data.draw(st.integers(0, len(good) - 1))
    if data.draw(st.booleans()):
        bad = good[:place]
    else:
        byte = data.draw(st.integers(0, 255).filter(lambda byte: byte != good[place]))
        bad = good[:place] + bytes([byte]) + good[place + 1 :]
    path.write_bytes(bad)
    try:
        if path.suffix == ".json" and same_content(good, bad):
            return
        faults = verify_folder(sound)
        assert path.name in {fault.file for fault in faults}
        with pytest.raises(ShardError, match=path.name):
            ShardReader(sound, verify="full")
    finally:
        path.write_bytes(good)


def same_content(good: bytes, bad: bytes) -> bool:
    """Whether a manifest still says the same: a space for a space, or another word where none is read."""
    try:
        one, two = (json.loads(text) for text in (good, bad))
        return all(one[key] == two[key] for key in ("schema", "fingerprint", "samples", "sources", "shards"))
    except (ValueError, KeyError, TypeError):
        return False
