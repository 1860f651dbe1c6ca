"""Shards: read back by an unmodified webdataset and by our reader; every damage is an error with the file's name."""

import gzip
import io
import json
import pickle
import tarfile
from collections.abc import Callable
from pathlib import Path

import pytest
import webdataset
from PIL import Image

from cropl.data.images import ImageError, load_image
from cropl.data.manifest import Manifest, ShardError
from cropl.data.shards import ShardReader, ShardWriter, index_shard, read_samples
from tests.data.conftest import make_sample

Write = Callable[..., Path]


def test_a_plain_webdataset_reads_them(write_shards: Write) -> None:
    folder = write_shards()
    urls = sorted(map(str, folder.glob("*.tar")))
    assert [Path(url).name for url in urls] == [f"samples-00000{i}.tar" for i in range(3)]
    found = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in found] == [f"s{i:04d}" for i in range(10)]
    for number, sample in enumerate(found):
        assert json.loads(sample["json"])["answers"] == [str(number)]
        assert load_image(sample["png"]).getpixel((0, 0)) == (number, number, number)
    reader = ShardReader(folder)
    for index, sample in enumerate(found):
        raw = reader.record(index)
        assert (raw["__key__"], raw["png"], raw["json"]) == (sample["__key__"], sample["png"], sample["json"])


def test_the_reader_returns_what_was_written(write_shards: Write) -> None:
    folder = write_shards()
    reader = ShardReader(folder, verify="full")
    assert len(reader) == 10
    for index in (9, 0, 4, 5):  # any order, across shards
        sample, expected = reader[index], make_sample(index)
        assert isinstance(sample.image, Image.Image) and isinstance(expected.image, Image.Image)
        assert sample.to_json() == expected.to_json() and sample.image.tobytes() == expected.image.tobytes()
    copy = pickle.loads(pickle.dumps(reader))
    assert copy[3].key == "s0003"
    manifest = Manifest.read(folder)
    assert len(manifest) == 10 and manifest == reader.manifest
    assert manifest.shards[0].entries[1].characters == len("Question 1?") + 1


def test_samples_for_a_study_keep_their_bytes(write_shards: Write) -> None:
    folder = write_shards()
    reader = ShardReader(folder)
    samples = read_samples(folder, count=6)
    assert [sample.key for sample in samples] == [f"s{i:04d}" for i in range(6)] and len(read_samples(folder)) == 10
    assert samples[5].image == reader.record(5)["png"] and samples[5].to_json() == reader[5].to_json()


def test_equal_input_gives_equal_bytes(write_shards: Write) -> None:
    one, two = Manifest.read(write_shards(name="one")), Manifest.read(write_shards(name="two"))
    assert one.fingerprint == two.fingerprint != Manifest.read(write_shards(count=9, name="three")).fingerprint


def test_encoded_images_are_copied_as_they_are(tmp_path: Path) -> None:
    sample = make_sample(1)
    assert isinstance(sample.image, Image.Image)
    buffer = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = 6
    sample.image.rotate(90, expand=True).save(buffer, "JPEG", exif=exif)
    path = tmp_path / "photo.jpeg"
    path.write_bytes(buffer.getvalue())
    with ShardWriter(tmp_path / "out") as writer:
        sample.image = path
        writer.write(sample)
        sample.key, sample.image = "second", buffer.getvalue()
        writer.write(sample)
    reader = ShardReader(tmp_path / "out")
    assert reader.record(0)["jpg"] == reader.record(1)["jpg"] == buffer.getvalue()
    assert reader[0].image.size == (sample.width, sample.height)  # type: ignore[union-attr]


@pytest.mark.parametrize("key", ["", "a.b", "../a", "/a", "a/b", "a b", "é", "a\0", "a" * 101])
def test_keys_that_a_reader_would_mix_up_are_refused(tmp_path: Path, key: str) -> None:
    sample = make_sample(0)
    sample.key = key
    with pytest.raises(ShardError, match="key"), ShardWriter(tmp_path / "out") as writer:
        writer.write(sample)


def test_what_the_writer_refuses(tmp_path: Path, write_shards: Write) -> None:
    with pytest.raises(ShardError, match="already holds"):
        ShardWriter(write_shards())
    with pytest.raises(ShardError, match="no sample"), ShardWriter(tmp_path / "empty"):
        pass
    with pytest.raises(ShardError, match="prefix"):
        ShardWriter(tmp_path / "x", prefix="../x")
    sample = make_sample(0)
    with pytest.raises(ShardError, match="already written"), ShardWriter(tmp_path / "twice") as writer:
        writer.write(sample)
        writer.write(sample)
    sample.width += 1
    with pytest.raises(ShardError, match="s0000.*displayed"), ShardWriter(tmp_path / "size") as writer:
        writer.write(sample)
    sample.image = b"no image"
    with pytest.raises(ImageError, match="s0000"), ShardWriter(tmp_path / "bytes") as writer:
        writer.write(sample)
    for name in ("twice", "size", "bytes"):
        assert list((tmp_path / name).iterdir()) == []  # an interrupted writer leaves nothing that looks complete
    with pytest.raises(ShardError, match="no manifest"):
        ShardReader(tmp_path / "size")


def test_an_interrupted_writer_leaves_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), ShardWriter(tmp_path / "out", samples_per_shard=2) as writer:
        for number in range(3):
            writer.write(make_sample(number))
        raise KeyboardInterrupt
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["samples-000000.tar"]


DAMAGE: dict[str, tuple[Callable[[bytes], bytes], str]] = {
    "mid-payload": (lambda data: data[:700], "bytes, the manifest says"),
    "on a header boundary": (lambda data: data[:1024], "bytes, the manifest says"),
    "in a header": (lambda data: data[:1100], "bytes, the manifest says"),
    "zero bytes": (lambda data: b"", "bytes, the manifest says"),
    "an HTML page": (lambda data: b"<html>" + b" " * (len(data) - 6), "SHA-256"),
    "a flipped bit": (lambda data: data[:600] + bytes([data[600] ^ 1]) + data[601:], "SHA-256"),
    "gzip": (gzip.compress, "bytes, the manifest says"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_found_before_reading(write_shards: Write, name: str) -> None:
    folder = write_shards()
    damage, message = DAMAGE[name]
    shard = folder / "samples-000001.tar"
    shard.write_bytes(damage(shard.read_bytes()))
    with pytest.raises(ShardError, match=rf"samples-000001\.tar.*{message}"):
        ShardReader(folder, verify="full")


@pytest.mark.parametrize("name", sorted(set(DAMAGE) - {"a flipped bit"}))
def test_damage_is_found_without_a_manifest(write_shards: Write, name: str) -> None:
    shard = write_shards() / "samples-000001.tar"
    assert len(index_shard(shard)) == 4
    shard.write_bytes(DAMAGE[name][0](shard.read_bytes()))
    with pytest.raises(ShardError, match=r"samples-000001\.tar"):
        index_shard(shard)


def test_damage_that_verification_was_told_to_skip_still_names_the_shard(write_shards: Write) -> None:
    folder = write_shards()
    shard = folder / "samples-000001.tar"
    data = shard.read_bytes()
    shard.write_bytes(data[:600])
    with pytest.raises(ShardError, match=r"samples-000001\.tar.*cut off"):
        ShardReader(folder, verify="off")[5]
    entry = Manifest.read(folder).shards[1].entries[0]
    at = entry.json_offset
    shard.write_bytes(data[:at] + b"x" + data[at + 1 :])
    with pytest.raises(ShardError, match=r"samples-000001\.tar.*s0004"):
        ShardReader(folder)[4]


def test_a_missing_shard_and_a_changed_manifest(write_shards: Write) -> None:
    folder = write_shards()
    (folder / "samples-000002.tar").rename(folder / "elsewhere")
    with pytest.raises(ShardError, match=r"samples-000002\.tar.*missing"):
        ShardReader(folder)
    path = folder / "manifest.json"
    good = path.read_text()
    for bad in ("", "[]", "{}", good.replace('"schema":1', '"schema":9'), good.replace("s0001", "s0002"), good[:-9]):
        path.write_text(bad)
        with pytest.raises(ShardError, match=r"manifest\.json"):
            ShardReader(folder)
    record = json.loads(good)
    record["shards"][0]["file"] = "../secret.tar"
    path.write_text(json.dumps(record))
    with pytest.raises(ShardError, match="shard name"):
        ShardReader(folder)


@pytest.mark.parametrize("member", ["s1.pyd", "s1.pickle", "s1.pth", "s1.json.gz", "s1.txt", "../s1.json", "s1"])
def test_members_that_are_never_decoded(tmp_path: Path, member: str) -> None:
    path = tmp_path / "bad.tar"
    with tarfile.open(path, "w") as tar:
        tar.addfile(tarfile.TarInfo(member))
    with pytest.raises(ShardError, match=r"bad\.tar.*member"):
        index_shard(path)


def test_links_and_incomplete_samples(tmp_path: Path) -> None:
    path = tmp_path / "bad.tar"
    link = tarfile.TarInfo("s1.json")
    link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
    for members, message in (
        ([link], "member"),
        ([tarfile.TarInfo("s1.json")], "needs one image"),
        ([tarfile.TarInfo("s1.jpg"), tarfile.TarInfo("s1.png"), tarfile.TarInfo("s1.json")], "needs one image"),
        ([tarfile.TarInfo("s1.json"), tarfile.TarInfo("s1.json")], "twice"),
    ):
        with tarfile.open(path, "w") as tar:
            for member in members:
                tar.addfile(member)
        with pytest.raises(ShardError, match=message):
            index_shard(path)


@pytest.mark.parametrize("url", ["pipe:cat /etc/passwd", "https://host/shards", "file:/tmp", "hf://x/y"])
def test_urls_and_commands_are_refused(url: str) -> None:
    with pytest.raises(ShardError, match="local folder"):
        ShardReader(url)
