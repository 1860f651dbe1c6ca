"""Finding every damage in a folder of shards, and saying where it lies."""

import errno
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from cropl.data.files import sha256_of
from cropl.data.manifest import Manifest, ShardError
from cropl.data.verify import Fault, tar_files, verify_folder
from tests.attacks.forged import seal

Write = Callable[..., Path]
FIRST, SECOND, THIRD = (f"samples-00000{i}.tar" for i in range(3))


def flip(path: Path, place: int, bit: int = 1) -> None:
    """Flip one bit of a file."""
    data = bytearray(path.read_bytes())
    data[place] ^= bit
    path.write_bytes(data)


class Recorder:
    """Remembers what it was told of the progress."""

    def __init__(self) -> None:
        self.told: list[tuple[str, int]] = []

    def stage(self, name: str, total: int) -> None:
        self.told.append((name, total))

    def advance(self, detail: str, count: int = 1) -> None:
        self.told.append((detail, count))


@pytest.mark.parametrize("images", [False, True])
def test_sound_shards(write_shards: Write, images: bool) -> None:
    recorder = Recorder()
    assert verify_folder(write_shards(), images, recorder) == []
    assert recorder.told == [("verify shards", 3), (FIRST, 1), (SECOND, 1), (THIRD, 1)]


def test_all_faults_are_collected(write_shards: Write) -> None:
    folder = write_shards()
    (folder / FIRST).write_bytes((folder / FIRST).read_bytes()[:6200])
    (folder / SECOND).unlink()
    (folder / THIRD).write_bytes(b"")
    faults = verify_folder(folder)
    assert [fault.file for fault in faults] == [FIRST, SECOND, THIRD]
    size = Manifest.read(folder).shards[0].bytes
    assert faults[0].message.startswith(f"6,200 bytes, the manifest says {size:,}; cut off inside the header")
    assert faults[1] == Fault(SECOND, "the shard is missing; restore it or build the shards again")
    assert faults[2].message.startswith("0 bytes, the manifest says") and "zero bytes; a copy" in faults[2].message


def test_a_flipped_bit_is_placed_where_decoding_fails(write_shards: Write) -> None:
    folder = write_shards()
    entry = Manifest.read(folder).shards[1].entries[2]
    flip(folder / SECOND, entry.image_offset + 20)
    (fault,) = verify_folder(folder)
    assert fault.file == SECOND and fault.message.startswith("its SHA-256 differs from the manifest's: a bit flipped")
    assert f"sample {entry.key!r}: image in the shard" in fault.message
    flip(folder / SECOND, entry.image_offset + 20)
    assert verify_folder(folder) == []
    flip(folder / SECOND, entry.json_offset)
    (fault,) = verify_folder(folder)
    assert f"sample {entry.key!r}: " in fault.message


def test_damage_that_decodes_cannot_be_placed(write_shards: Write) -> None:
    folder = write_shards()
    entry = Manifest.read(folder).shards[0].entries[0]
    text = (folder / FIRST).read_bytes()[entry.json_offset :][: entry.json_bytes]
    flip(folder / FIRST, entry.json_offset + text.index(b"Question"))  # "Puestion" is a question too
    (fault,) = verify_folder(folder)
    assert fault.message.endswith("every sample still decodes, so the damage cannot be placed")


def test_every_bad_sample_is_told_when_images_are_decoded(write_shards: Write) -> None:
    folder = write_shards()
    first, _, third, _ = Manifest.read(folder).shards[0].entries
    for entry in (first, third):
        flip(folder / FIRST, entry.image_offset + 20)
    faults = verify_folder(folder, images=True)
    assert len(faults) == 2 and "SHA-256" in faults[0].message and repr(first.key) in faults[0].message
    assert faults[1].message.startswith(f"sample {third.key!r}: image")
    assert len(verify_folder(folder)) == 1


def test_shards_that_were_replaced(write_shards: Write) -> None:
    folder, other = write_shards(), write_shards(12, 3, "other")
    (folder / FIRST).write_bytes((folder / SECOND).read_bytes())
    (folder / THIRD).write_bytes((other / FIRST).read_bytes())
    one, two = verify_folder(folder)
    assert (one.file, one.message) == (
        FIRST,
        "sample 's0004' stands where the manifest says 's0000'; the shard was replaced",
    )
    assert two.file == THIRD and "sample 's0000' stands where the manifest says 's0008'" in two.message
    short = write_shards(9, 3, "short")
    (short / FIRST).write_bytes((folder / SECOND).read_bytes())
    (folder / FIRST).write_bytes((other / FIRST).read_bytes())
    assert "3 samples, the manifest says 4; the shard was replaced" in verify_folder(folder)[0].message


def test_a_longer_end_is_a_change_too(write_shards: Write) -> None:
    folder = write_shards()
    with open(folder / FIRST, "ab") as file:
        file.write(bytes(512))
    (fault,) = verify_folder(folder)
    assert "the manifest says" in fault.message and "every sample is in its place" in fault.message


def test_an_address_is_no_folder() -> None:
    with pytest.raises(ShardError, match=r"^https://host/shards/: only local folders are verified"):
        verify_folder("https://host/shards/?sig=hunter2")


def test_a_member_of_another_size(write_shards: Write) -> None:
    folder = write_shards()
    bytes_of = Manifest.read(folder).shards[0].entries[1].json_bytes
    seal(folder, lambda manifest: manifest["shards"][0]["index"][1].__setitem__(6, bytes_of - 1))
    (fault,) = verify_folder(folder)
    assert fault == Fault(FIRST, "sample 's0001' is of another size or at another place than the manifest says")


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        (7, 9, "the image is 8x6, its record says 8x6 and the manifest 9x6"),
        (10, 3, "number of boxes or answers is not what the manifest says"),
        (11, 0, "number of boxes or answers is not what the manifest says"),
    ],
)
def test_facts_that_only_decoding_can_check(write_shards: Write, column: int, value: int, message: str) -> None:
    folder = write_shards()
    seal(folder, lambda manifest: manifest["shards"][0]["index"][0].__setitem__(column, value))
    assert verify_folder(folder) == []  # the shards are what they were, byte for byte
    (fault,) = verify_folder(folder, images=True)
    assert fault.file == FIRST and fault.message.startswith("sample 's0000': ") and message in fault.message


@pytest.mark.parametrize("damage", ["missing", "cut", "changed"])
def test_without_a_usable_manifest_the_structure_is_checked(write_shards: Write, damage: str) -> None:
    folder = write_shards()
    path = folder / "manifest.json"
    text = path.read_text()
    message = {"missing": "no manifest", "cut": "not a manifest", "changed": "fingerprint"}[damage]
    path.unlink() if damage == "missing" else path.write_text(
        text[:-9] if damage == "cut" else text.replace("s0001", "s0099")
    )
    (fault,) = verify_folder(folder)
    assert fault.file == "manifest.json" and message in fault.message and str(folder) not in fault.message
    (folder / SECOND).write_bytes((folder / SECOND).read_bytes()[:6000])
    assert [fault.file for fault in verify_folder(folder)] == ["manifest.json", SECOND]


def test_nothing_to_verify(tmp_path: Path) -> None:
    with pytest.raises(ShardError, match=r"nowhere: no such folder"):
        verify_folder(tmp_path / "nowhere")
    with pytest.raises(ShardError, match=r"manifest\.json: no manifest"):
        verify_folder(tmp_path)


def test_unlisted_shards_are_no_fault(write_shards: Write) -> None:
    folder = write_shards()
    (folder / "more.tar").write_bytes(b"")
    (folder / ".samples-000009.tar.part").write_bytes(b"")
    assert verify_folder(folder) == [] and tar_files(folder) == ["more.tar", FIRST, SECOND, THIRD]


def test_a_disk_that_fails_is_a_fault_of_its_shard(write_shards: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    def stale(path: Path) -> str:
        if path.name == SECOND:
            raise OSError(errno.ESTALE, "Stale file handle")
        return sha256_of(path)

    monkeypatch.setattr("cropl.data.verify.sha256_of", stale)
    assert verify_folder(write_shards()) == [Fault(SECOND, "cannot be read (stale file handle)")]


def test_a_shard_that_is_a_folder_or_a_pipe(write_shards: Write) -> None:
    folder = write_shards()
    (folder / FIRST).unlink()
    (folder / FIRST).mkdir()
    (folder / SECOND).unlink()
    os.mkfifo(folder / SECOND)  # opening it would wait for ever
    assert [fault.message[:20] for fault in verify_folder(folder)] == ["the shard is missing"] * 2


def test_pixels_that_changed_but_decode(write_shards: Write) -> None:
    folder = write_shards()
    black, _, _, grey = Manifest.read(folder).shards[0].entries
    data = bytearray((folder / FIRST).read_bytes())
    new = data[black.image_offset :][: black.image_bytes].ljust(grey.image_bytes, b"\0")
    data[grey.image_offset : grey.image_offset + grey.image_bytes] = new  # of the same size, and whole
    (folder / FIRST).write_bytes(data)
    (fault,) = verify_folder(folder, images=True)
    assert "a member was replaced" in fault.message and "cannot be placed" in fault.message
