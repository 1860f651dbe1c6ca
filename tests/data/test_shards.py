"""Shards: read back by an unmodified webdataset and by our reader; every damage is an error with the file's name."""

import gzip
import io
import json
import pickle
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import webdataset
from PIL import Image

from cropl.data.collate import Prepared, SampleCollate
from cropl.data.images import ImageError, load_image
from cropl.data.manifest import Manifest, ShardError
from cropl.data.sample import Box, Sample
from cropl.data.shards import ShardReader, read_samples
from cropl.data.writer import ShardWriter
from cropl.grid import Region, TokenGrid
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
    assert len(manifest) == 10 and manifest.fingerprint == reader.fingerprint
    entry = manifest.shards[0].entries[1]
    assert (entry.source, entry.extension, entry.width, entry.height) == ("numbers", "png", 8, 7)
    assert (entry.characters, entry.boxes, entry.answers) == (len("Question 1?") + 1, 1, 1)
    for name in ("width", "height", "characters", "boxes", "answers"):
        listed = [getattr(entry, name) for shard in manifest.shards for entry in shard.entries]
        assert getattr(reader, f"{name}_N").tolist() == listed
    assert reader.sources == ["numbers"] and reader.size_K.tolist() == [4, 4, 2] and reader.size_F.tolist() == [10]


def test_several_folders_are_told_apart(write_shards: Write, tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "text") as writer:
        writer.write(text_alone())
        writer.write(replace(text_alone("more"), answers=["a", "b", "c"]))
    reader = ShardReader([write_shards(), tmp_path / "text"])
    assert reader.size_F.tolist() == [10, 2] and reader.answers_N.tolist() == [1] * 10 + [0, 3]
    assert reader.told(reader.answers_N != 1) == "text (2)" and reader.told(reader.answers_N > 3) == ""
    assert reader.told(reader.answers_N > 0) == "numbers (10), text (1)"


def test_pictures_decoded_at_a_fraction(tmp_path: Path) -> None:
    """They are smaller, and the evidence lies on the same tokens all the same."""
    gradient = np.linspace(0, 255, 400 * 600 * 3).astype(np.uint8).reshape(400, 600, 3)
    buffer = io.BytesIO()
    Image.fromarray(gradient).save(buffer, "JPEG")
    boxes: list[Box] = [(150.0, 100.0, 300.0, 250.0), (500.0, 0.0, 600.0, 60.0)]
    region = Region.from_boxes(boxes, 600, 400)
    sample = replace(make_sample(0), image=buffer.getvalue(), width=600, height=400, boxes=boxes, region=region)
    with ShardWriter(tmp_path / "out") as writer:
        writer.write(sample)
    whole, small = ShardReader(tmp_path / "out")[0], ShardReader(tmp_path / "out", decode_side=64)[0]
    assert (whole.picture().size, small.picture().size) == ((600, 400), (75 * 2, 50 * 2))
    assert small.boxes == whole.boxes and (small.width, small.height) == (600, 400)

    def prepare(picture: Image.Image) -> Prepared:
        return Prepared(torch.zeros(3, 8, 12), (8, 12), TokenGrid.stretched(8, 12, *picture.size))

    one, two = (SampleCollate(prepare)([read])["questions"][0][0]["evidence"] for read in (whole, small))
    assert torch.equal(one, two) and one.shape == (2, 96) and one.sum() == 2 * (3 * 3 + 2)


def text_alone(key: str = "text") -> Sample:
    """A conversation without an image and without a published answer."""
    sample = make_sample(0)
    sample.key, sample.image, sample.width, sample.height, sample.boxes = key, None, 0, 0, []
    sample.region, sample.source, sample.answers = Region.full(), "text", []
    return sample


def test_samples_without_an_image(tmp_path: Path) -> None:
    told = replace(text_alone("b"), answers=["Yes."], followups=[("Why?", "So.")], prompt="Is it so? Explain.", id="7")
    with ShardWriter(tmp_path / "out") as writer:
        for sample in (text_alone("a"), make_sample(1), told):
            writer.write(sample)
    reader = ShardReader(tmp_path / "out", verify="full")
    assert [reader[index].to_json() for index in (0, 2)] == [text_alone("a").to_json(), told.to_json()]
    assert reader[0].image is None and set(reader.record(0)) == {"__key__", "__url__", "json"}
    assert reader.width_N.tolist() == [0, 8, 0] and [reader.sources[i] for i in reader.source_N] == [
        "text",
        "numbers",
        "text",
    ]
    assert reader.characters_N[2] == len("Is it so? Explain." + "Yes." + "Why?" + "So.")
    with pytest.raises(ShardError, match="no image.*4x3"), ShardWriter(tmp_path / "size") as writer:
        writer.write(replace(text_alone(), width=4, height=3))


def test_several_folders_are_numbered_one_after_the_other(tmp_path: Path, write_shards: Write) -> None:
    first = write_shards(5)
    with ShardWriter(tmp_path / "more") as writer:
        writer.write(text_alone())
    reader = ShardReader([first, tmp_path / "more"])
    assert len(reader) == 6 and reader[5].key == "text" and reader[4].key == "s0004"
    assert reader.fingerprint not in (ShardReader(first).fingerprint, ShardReader(tmp_path / "more").fingerprint)
    with pytest.raises(ShardError, match="share sample keys"):
        ShardReader([first, first])
    with pytest.raises(ShardError, match="no folder"):
        ShardReader([])


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


@pytest.mark.parametrize("key", ["", "a.b", "../a", "/a", "a/b", "a b", "é", "a\0", "a" * 96])
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
    for bad in ("", "[]", "{}", good.replace('"schema":3', '"schema":2'), good.replace("s0001", "s0002"), good[:-9]):
        path.write_text(bad)
        with pytest.raises(ShardError, match=r"manifest\.json"):
            ShardReader(folder)
    record = json.loads(good)
    record["shards"][0]["file"] = "../secret.tar"
    path.write_text(json.dumps(record))
    with pytest.raises(ShardError, match="shard name"):
        ShardReader(folder)


@pytest.mark.parametrize("url", ["pipe:cat /etc/passwd", "https://host/shards", "file:/tmp", "hf://x/y"])
def test_urls_and_commands_are_refused(url: str) -> None:
    with pytest.raises(ShardError, match="local folder"):
        ShardReader(url)
