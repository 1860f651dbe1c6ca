"""Reading a shard's headers strictly: what a plain WebDataset tar holds, and where.

`tarfile` and `webdataset` end a damaged archive silently, and follow what a header claims. Here every block from the
first to the last must be accounted for: headers of images and records, whose payload is there, then zeros. Nothing is
decompressed, decoded or extracted.
"""

import os
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple

from cropl.data.images import EXTENSIONS
from cropl.data.manifest import KEY, MAX_MEMBER_BYTES, ShardError

BLOCK = tarfile.BLOCKSIZE
MEMBERS = (*EXTENSIONS.values(), "jpeg", "json")
"""Extensions that a shard may hold."""

_CODE = {"pyd", "pkl", "pickle", "pth", "pt", "npy", "npz", "gz", "bz2", "xz", "zst"}
_COMPRESSED = {
    b"\x1f\x8b": ("gzip", "gunzip"),
    b"BZh": ("bzip2", "bunzip2"),
    b"\xfd7zXZ": ("xz", "unxz"),
    b"\x28\xb5\x2f\xfd": ("zstd", "unzstd"),
}
_KINDS = {
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.LNKTYPE: "a hard link",
    tarfile.CHRTYPE: "a device",
    tarfile.BLKTYPE: "a device",
    tarfile.FIFOTYPE: "a pipe",
    tarfile.DIRTYPE: "a folder",
    tarfile.GNUTYPE_SPARSE: "a sparse file",
    tarfile.GNUTYPE_LONGNAME: "a GNU long name",
    tarfile.GNUTYPE_LONGLINK: "a GNU long name",
    tarfile.XHDTYPE: "a PAX header",
    tarfile.XGLTYPE: "a PAX header",
    tarfile.SOLARIS_XHDTYPE: "a PAX header",
}


class _Member(NamedTuple):
    name: str
    offset: int
    bytes: int


def index_shard(path: str | Path) -> list[tuple[str, str, int, int, int, int]]:
    """Read a shard's headers: `(key, image extension, image offset, image bytes, json offset, json bytes)` per sample.

    Without an image the extension is "" and offset and bytes are 0.

    Raises:
        ShardError: no plain tar; truncated or damaged (webdataset itself ends such a shard silently); a member that is
            no regular file or of a type that is never decoded; or a sample that is not one json and at most one image.
        OSError: the file cannot be read.
    """
    samples: dict[str, dict[str, tuple[int, int]]] = {}
    last = ""
    try:
        with open(path, "rb") as file:
            for member in _members(file):
                key, extension = _name(member.name)
                if extension in samples.get(key, {}):
                    raise ShardError(f"member {member.name!r} is there twice; a key names one sample")
                if key in samples and key != last:
                    raise ShardError(
                        f"member {member.name!r}: sample {key!r} came before; the members of a sample follow one "
                        "another, and a key names one sample"
                    )
                samples.setdefault(key, {})[extension] = (member.offset, member.bytes)
                last = key
        return [_row(key, members) for key, members in samples.items()]
    except ShardError as error:
        raise ShardError(f"{path}: {error}") from None


def _members(file: BinaryIO) -> Iterator[_Member]:
    """Every member in turn, when its payload is there; ends only where the archive does."""
    size, offset = os.fstat(file.fileno()).st_size, 0
    if not size:
        raise ShardError("zero bytes; a copy or download failed: restore the shard")
    keys: list[str] = []
    while (header := _header(file, offset, keys)) is not None:
        kind = _KINDS.get(header.type, f"of the unknown type {header.type!r}")
        if header.type not in (tarfile.REGTYPE, tarfile.AREGTYPE):
            remedy = "; write it with `tar --format=ustar` and short names" if "PAX" in kind or "GNU" in kind else ""
            raise ShardError(f"member {header.name!r} is {kind}; a shard holds plain files alone{remedy}")
        if not 0 <= header.size <= MAX_MEMBER_BYTES:
            raise ShardError(f"member {header.name!r} claims {header.size:,} bytes; {MAX_MEMBER_BYTES:,} are allowed")
        start, key = offset + BLOCK, header.name.partition(".")[0]
        if start + header.size > size:
            raise ShardError(
                f"cut off inside {header.name!r}: {size - start:,} of its {header.size:,} bytes are there, and "
                f"{_whole([name for name in keys if name != key])} before it"
            )
        yield _Member(header.name, start, header.size)
        if key not in keys[-1:]:
            keys.append(key)
        offset = start + -(-header.size // BLOCK) * BLOCK
    if not keys:
        raise ShardError("no sample: the file begins with zeros; a copy or download failed: restore the shard")
    _check_end(file, offset, keys)


def _header(file: BinaryIO, offset: int, keys: list[str]) -> tarfile.TarInfo | None:
    """The header at an offset; None for the zeros that end an archive. `keys` are the samples so far."""
    file.seek(offset)
    block = file.read(BLOCK)
    if block == bytes(BLOCK):
        return None
    try:
        return tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        if offset == 0:
            raise ShardError(_not_a_tar(block)) from None
    if not block:
        raise ShardError(
            f"cut off between two members, in or after sample {keys[-1]!r}: the archive has no end, "
            f"{_whole(keys[:-1])} before it"
        )
    if len(block) < BLOCK:
        raise ShardError(f"cut off inside the header at byte {offset:,}, in or after sample {keys[-1]!r}")
    raise ShardError(f"no valid header at byte {offset:,}, in or after sample {keys[-1]!r}: the file is damaged there")


def _check_end(file: BinaryIO, offset: int, keys: list[str]) -> None:
    """Two blocks of zeros end an archive; only more zeros may follow."""
    file.seek(offset)
    at = offset
    while piece := file.read(1 << 20):
        if piece.count(0) < len(piece):
            raise ShardError(
                f"the archive ends at byte {offset:,} after sample {keys[-1]!r}, but data follows: a header was wiped "
                "out, or tar files were joined; the samples there would never be read"
            )
        at += len(piece)
    if at - offset < 2 * BLOCK:
        raise ShardError(f"cut off inside the end of the archive, after sample {keys[-1]!r}")


def _not_a_tar(start: bytes) -> str:
    for magic, (name, command) in _COMPRESSED.items():
        if start.startswith(magic):
            return f"compressed with {name}; a plain tar is needed, to read samples at any place: `{command}` it"
    if start.removeprefix(b"\xef\xbb\xbf").lstrip()[:1] == b"<":
        return "an HTML or XML page, no tar: a download failed, and saved the answer under this name; fetch it again"
    return "not a tar file: it begins with no valid header"


def _name(name: str) -> tuple[str, str]:
    """Key and extension of a member's name, as a WebDataset reader would take them."""
    key, _, extension = name.partition(".")
    suffixes = extension.lower().split(".")
    if "/" in name or "\\" in name:
        raise ShardError(f"member {name!r}: a key is a plain name, no path; nothing outside a shard is ever touched")
    if _CODE & set(suffixes):
        raise ShardError(f"member {name!r} could run code or fill the memory when decoded; it is never decoded")
    if extension not in MEMBERS and suffixes[-1] in MEMBERS:
        reason = "a dot ends the key" if len(suffixes) > 1 else "extensions are in small letters"
        raise ShardError(
            f"member {name!r}: for WebDataset its key is {key!r} and its extension {extension!r}; {reason}"
        )
    if extension not in MEMBERS:
        raise ShardError(f"member {name!r}: only {', '.join(MEMBERS)} are read from a shard")
    if not KEY.fullmatch(key):
        raise ShardError(f"member {name!r}: a key is made of letters, digits, '_' and '-', not too many")
    return key, extension


def _row(key: str, members: dict[str, tuple[int, int]]) -> tuple[str, str, int, int, int, int]:
    images = [extension for extension in members if extension != "json"]
    if len(images) > 1 or "json" not in members:
        raise ShardError(f"sample {key!r} has {', '.join(members)}; it needs one json and at most one image")
    image = images[0] if images else ""
    return (key, image, *members.get(image, (0, 0)), *members["json"])


def _whole(keys: list[str]) -> str:
    return f"{len(keys):,} whole sample{'' if len(keys) == 1 else 's'}"
