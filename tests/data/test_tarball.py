"""Reading a shard's headers: every kind of damage is an error that says what is wrong and where."""

import bz2
import gzip
import io
import lzma
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest

from cropl.data.manifest import MAX_MEMBER_BYTES, Manifest, ShardError
from cropl.data.tarball import index_shard

Write = Callable[..., Path]
Members = list[tuple[str, bytes]]


def tar_of(path: Path, members: Members, format: int = tarfile.USTAR_FORMAT) -> Path:
    """A tar file of plain members."""
    with tarfile.open(path, "w", format=format) as tar:
        for name, data in members:
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return path


def with_header(path: Path, change: Callable[[tarfile.TarInfo], None]) -> Path:
    """One member whose header claims something else than its payload has."""
    info = tarfile.TarInfo("s1.json")
    info.size = 2
    change(info)
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"{}".ljust(512, b"\0") + bytes(1024))
    return path


@pytest.fixture
def shard(write_shards: Write) -> Path:
    """Four samples s0000 to s0003, each with a json of one block and a png of one block."""
    return write_shards(4) / "samples-000000.tar"


def test_the_index_is_where_the_members_are(write_shards: Write) -> None:
    folder = write_shards()
    for listed in Manifest.read(folder).shards:
        data = (folder / listed.file).read_bytes()
        rows = index_shard(folder / listed.file)
        assert rows == [(entry.key, *entry[2:7]) for entry in listed.entries]
        for _, extension, image, image_bytes, json_at, json_bytes in rows:
            assert extension == "png" and data[image:].startswith(b"\x89PNG") and image_bytes > 0
            assert data[json_at] == ord("{") and data[json_at + json_bytes - 1] == ord("}")


def test_what_other_writers_may_do(tmp_path: Path) -> None:
    plain: Members = [("a-1.jpeg", b"x"), ("a-1.json", b"{}"), ("b.json", b"{}")]
    for format in (tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT):
        rows = index_shard(tar_of(tmp_path / "a.tar", plain, format))
        assert rows == [("a-1", "jpeg", 512, 1, 1536, 2), ("b", "", 0, 0, 2560, 2)]
    data = (tmp_path / "a.tar").read_bytes()
    (tmp_path / "a.tar").write_bytes(data[: 3072 + 1024])  # two blocks are an end, the rest is padding
    assert len(index_shard(tmp_path / "a.tar")) == 2


CUTS: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "zero bytes": (lambda data: b"", "zero bytes"),
    "zeros": (lambda data: bytes(len(data)), "begins with zeros"),
    "an HTML page": (lambda data: b"\n<!DOCTYPE html><html>404</html>", "HTML or XML page.*download failed"),
    "a long HTML page": (lambda data: b"<html>".ljust(len(data)), "HTML or XML page"),
    "an XML page": (lambda data: b'\xef\xbb\xbf<?xml version="1.0"?><Error/>', "HTML or XML page"),
    "gzip": (gzip.compress, "gzip; a plain tar is needed.*`gunzip`"),
    "bzip2": (bz2.compress, "bzip2.*`bunzip2`"),
    "xz": (lzma.compress, "xz.*`unxz`"),
    "zstd": (lambda data: b"\x28\xb5\x2f\xfd" + data, "zstd.*`unzstd`"),
    "text": (lambda data: b"hello", "not a tar file"),
    "in a payload": (lambda data: data[:4700], r"cut off inside 's0002\.json': 92 of its \d+ .*2 whole samples"),
    "in the second member": (lambda data: data[:1600], r"cut off inside 's0000\.png'.* 0 whole samples"),
    "in a header": (lambda data: data[:4196], "cut off inside the header at byte 4,096, in or after sample 's0001'"),
    "between samples": (lambda data: data[:4096], "between two members, in or after sample 's0001'.*1 whole sample "),
    "between members": (lambda data: data[:5120], "between two members, in or after sample 's0002'.*2 whole samples"),
    "before the end": (lambda data: data[:8192], "between two members, in or after sample 's0003'.*3 whole samples"),
    "in the end": (lambda data: data[: 8192 + 512], "cut off inside the end.*'s0003'"),
    "in the end's second block": (lambda data: data[: 8192 + 700], "cut off inside the end.*'s0003'"),
    "garbage header": (
        lambda data: data[:4096] + b"\xa5" * 512 + data[4608:],
        "no valid header at byte 4,096, in or after sample 's0001'",
    ),
    "wiped header": (
        lambda data: data[:4096] + bytes(512) + data[4608:],
        "ends at byte 4,096 after sample 's0001', but data follows",
    ),
    "joined archives": (lambda data: data + data, "after sample 's0003', but data follows.*joined"),
}


@pytest.mark.parametrize("name", CUTS)
def test_where_an_archive_is_cut_or_overwritten(shard: Path, name: str) -> None:
    damage, message = CUTS[name]
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(ShardError, match=rf"samples-000000\.tar: .*{message}"):
        index_shard(shard)


def test_each_cut_is_found(shard: Path) -> None:
    data = shard.read_bytes()
    for size in range(0, 8192 + 1024, 64):
        shard.write_bytes(data[:size])
        with pytest.raises(ShardError, match=r"samples-000000\.tar"):
            index_shard(shard)


MEMBERS: dict[str, tuple[Members, str]] = {
    "a member twice": ([("s1.json", b"{}"), ("s1.json", b"{}")], r"'s1\.json' is there twice"),
    "a key twice": ([("s1.json", b"{}"), ("s2.json", b"{}"), ("s1.jpg", b"x")], "'s1' came before"),
    "a dotted key": ([("img_1.5x.jpg", b"x")], r"its key is 'img_1' and its extension '5x\.jpg'; a dot ends the key"),
    "capital letters": ([("s1.JPG", b"x")], "small letters"),
    "no extension": ([("s1", b"x")], "only jpg, png, webp, jpeg, json"),
    "another extension": ([("s1.txt", b"x")], "only jpg, png, webp, jpeg, json"),
    "a path upwards": ([("../s1.json", b"{}")], "no path"),
    "an absolute path": ([("/etc/s1.json", b"{}")], "no path"),
    "a long path": ([(f"{'d' * 90}/{'s' * 80}.json", b"{}")], "no path"),
    "a Windows path": ([("..\\s1.json", b"{}")], "no path"),
    "a space": ([("s 1.json", b"{}")], "letters, digits"),
    "another script": ([("é.json", b"{}")], "letters, digits"),
    "no key": ([(".json", b"{}")], "letters, digits"),
    "a key that is too long": ([("s" * 99, b"{}")], "only"),
    "two images": ([("s1.jpg", b"x"), ("s1.png", b"x"), ("s1.json", b"{}")], "has jpg, png, json; it needs one json"),
    "no record": ([("s1.jpg", b"x")], "has jpg; it needs one json"),
} | {
    f"a {suffix} file": ([(f"s1.{suffix}", b"x")], "never decoded")
    for suffix in ("pyd", "pkl", "pickle", "pth", "pt", "npy", "npz", "json.gz", "pyd.gz", "gz.json", "PYD")
}


@pytest.mark.parametrize("name", MEMBERS)
def test_members_that_are_refused(tmp_path: Path, name: str) -> None:
    members, message = MEMBERS[name]
    with pytest.raises(ShardError, match=rf"bad\.tar: .*{message}"):
        index_shard(tar_of(tmp_path / "bad.tar", members))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (tarfile.SYMTYPE, "a symbolic link"),
        (tarfile.LNKTYPE, "a hard link"),
        (tarfile.CHRTYPE, "a device"),
        (tarfile.BLKTYPE, "a device"),
        (tarfile.FIFOTYPE, "a pipe"),
        (tarfile.DIRTYPE, "a folder"),
        (tarfile.GNUTYPE_SPARSE, "a sparse file"),
        (tarfile.CONTTYPE, "of the unknown type b'7'"),
        (b"Z", "of the unknown type b'Z'"),
    ],
)
def test_members_that_are_no_plain_files(tmp_path: Path, kind: bytes, message: str) -> None:
    def change(info: tarfile.TarInfo) -> None:
        info.type, info.linkname = kind, "/etc/passwd"

    with pytest.raises(ShardError, match=rf"'s1\.json' is {message}; a shard holds plain files"):
        index_shard(with_header(tmp_path / "bad.tar", change))


@pytest.mark.parametrize("format", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
def test_extended_headers_are_refused(tmp_path: Path, format: int) -> None:
    # They could rename a member, or give it another size for one reader than for the next.
    path = tar_of(tmp_path / "bad.tar", [("s1.json", b"{}"), ("s" * 98 + ".json", b"{}")], format)
    with pytest.raises(ShardError, match="PAX header|GNU long name.*--format=ustar"):
        index_shard(path)
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers={"size": "9"}) as tar:
        tar.addfile(tarfile.TarInfo("s1.json"))
    with pytest.raises(ShardError, match="PAX header"):
        index_shard(path)


@pytest.mark.parametrize(
    ("size", "message"),
    [
        (10_000_000_000, "claims 10,000,000,000 bytes; 268,435,456 are allowed"),
        (-512, "claims -512 bytes"),  # a reader that believed it would go round in circles
        (1 << 80, "claims 1,208,925,819,614,629,174,706,176 bytes"),
        (MAX_MEMBER_BYTES, r"cut off inside 's1\.json': 1,536 of its 268,435,456 bytes"),
        (1537, r"cut off inside 's1\.json': 1,536 of its 1,537 bytes"),
    ],
)
def test_a_size_that_is_a_lie(tmp_path: Path, size: int, message: str) -> None:
    path = with_header(tmp_path / "bad.tar", lambda info: setattr(info, "size", size))
    with pytest.raises(ShardError, match=message):
        index_shard(path)


def test_a_file_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.tar"):
        index_shard(tmp_path / "no.tar")


def test_the_longest_key_fits_a_plain_header(tmp_path: Path) -> None:
    for extension in ("json", "webp"):
        tar_of(tmp_path / "a.tar", [(f"{'s' * 95}.{extension}", b"x")], tarfile.PAX_FORMAT)
        assert b"ustar" in (tmp_path / "a.tar").read_bytes()[257:265]
    members: Members = [(f"{'s' * 95}.json", b"{}"), (f"{'s' * 95}.webp", b"x")]
    assert [row[0] for row in index_shard(tar_of(tmp_path / "a.tar", members, tarfile.PAX_FORMAT))] == ["s" * 95]
