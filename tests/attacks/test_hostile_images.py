"""Images made to do harm, or cut off: an error that names the image, in little time and memory; nothing is started."""

import io
import json
import os
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image, ImageFile

from cropl.data.images import ImageError, image_format, image_size, load_image

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8))
ROOT = Path(__file__).parents[2]


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def chunk(kind: bytes, data: bytes) -> bytes:
    """A chunk of a PNG."""
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png(width: int, height: int, *chunks: bytes, rows: bytes = b"") -> bytes:
    """A PNG that claims a size, with `chunks` before its pixels."""
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    body = header + b"".join(chunks) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + body


def webp(width: int, height: int) -> bytes:
    """An animation that claims a canvas around one small frame."""

    def part(kind: bytes, data: bytes) -> bytes:
        return kind + struct.pack("<I", len(data)) + data + b"\0" * (len(data) % 2)

    def three(number: int) -> bytes:
        return struct.pack("<I", number)[:3]

    frame = encoded(Image.new("RGB", (8, 8)), "WEBP", lossless=True)[12:]
    body = part(b"VP8X", b"\2\0\0\0" + three(width - 1) + three(height - 1)) + part(b"ANIM", bytes(6))
    body += part(b"ANMF", bytes(6) + three(7) + three(7) + bytes(4) + frame)
    return b"RIFF" + struct.pack("<I", 4 + len(body)) + b"WEBP" + body


WHOLE = {
    "jpeg": encoded(PHOTO, "JPEG"),
    "progressive jpeg": encoded(PHOTO, "JPEG", progressive=True),
    "grey jpeg": encoded(PHOTO.convert("L"), "JPEG"),
    "cmyk jpeg": encoded(PHOTO.convert("CMYK"), "JPEG"),
    "png": encoded(PHOTO),
    "interlaced palette png": encoded(PHOTO.quantize(16)),
    "webp": encoded(PHOTO, "WEBP"),
    "lossless webp": encoded(PHOTO, "WEBP", lossless=True),
}
PIXELS = {kind: load_image(data).tobytes() for kind, data in WHOLE.items()}


@given(kind=st.sampled_from(sorted(WHOLE)), share=st.floats(0, 1, exclude_max=True), half=st.booleans())
def test_no_cut_passes_for_a_whole_image(kind: str, share: float, half: bool) -> None:
    data = WHOLE[kind]
    try:
        image = load_image(data[: int(share * len(data))], "cut", at_least=(32, 24) if half else None)
    except ImageError as error:
        assert str(error).startswith("image cut: ")
    else:  # only what follows the pixels is missing
        assert share > 0.9 and (half or image.tobytes() == PIXELS[kind])


@pytest.mark.parametrize("kind", [kind for kind in WHOLE if "jpeg" in kind])
def test_every_single_cut_of_a_jpeg_is_refused(kind: str) -> None:
    data = WHOLE[kind]
    for length in range(len(data)):
        with pytest.raises(ImageError, match="cut"):
            load_image(data[:length], "cut")


@given(kind=st.sampled_from(sorted(WHOLE)), at=st.floats(0, 1, exclude_max=True), new=st.binary(min_size=1, max_size=8))
@pytest.mark.filterwarnings("ignore")
def test_altered_bytes_are_an_error_or_an_image(kind: str, at: float, new: bytes) -> None:
    data = bytearray(WHOLE[kind])
    start = int(at * len(data))
    data[start : start + len(new)] = new
    try:
        image = load_image(bytes(data), "altered")
    except ImageError as error:
        assert "altered" in str(error)
    else:
        assert image.mode == "RGB" and image.size == image_size(bytes(data))


@given(
    st.binary(max_size=300), st.sampled_from([b"", b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"RIFF\x99\0\0\0WEBPVP8 "])
)
def test_noise_is_no_image(noise: bytes, start: bytes) -> None:
    for read in (load_image, image_size, image_format):
        with pytest.raises(ImageError, match="noise"):
            read(start + noise, "noise")


def test_the_switch_that_hides_missing_pixels_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    cut = WHOLE["jpeg"][:-200]
    monkeypatch.setattr(ImageFile, "LOAD_TRUNCATED_IMAGES", True)
    Image.open(io.BytesIO(cut)).load()  # this is what Pillow does with it
    for data in (cut, WHOLE["jpeg"]):
        with pytest.raises(ImageError, match="LOAD_TRUNCATED_IMAGES"):
            load_image(data)


OTHERS = {
    "nothing": b"",
    "a page": b"<!DOCTYPE html><html>503 Service Unavailable</html>",
    "eps": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n",
    "psd": b"8BPS" + struct.pack(">H6xHIIHH", 1, 3, 4, 4, 8, 3) + bytes(16) + bytes(48),
    "fits": b"SIMPLE  =                    T".ljust(80)
    + b"BITPIX  =                    8".ljust(80)
    + b"END".ljust(2720),
    "svg": b'<?xml version="1.0"?><svg xmlns="http://www.w3.org/2000/svg"><rect width="9" height="9"/></svg>',
    "pdf": b"%PDF-1.7\n",
    "bmp": encoded(PHOTO, "BMP"),
    "gif": encoded(PHOTO, "GIF"),
    "animated gif": encoded(PHOTO, "GIF", save_all=True, append_images=[PHOTO.rotate(180)]),
    "tiff": encoded(PHOTO, "TIFF"),
    "ppm": encoded(PHOTO, "PPM"),
    "ico": encoded(PHOTO, "ICO"),
    "jpeg 2000": b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(64),
    "avif": b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miafMA1B" + bytes(64),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_other_formats_are_refused_whatever_they_are_called(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    def starts(*command: object, **options: object) -> None:
        raise AssertionError(f"a process is started: {command}")

    monkeypatch.setattr(subprocess, "Popen", starts)
    monkeypatch.setattr(os, "system", starts)
    path = tmp_path / "photo.jpg"
    path.write_bytes(OTHERS[kind])
    for read in (load_image, image_size, image_format):
        with pytest.raises(ImageError, match=r"photo\.jpg'?: not a JPEG, PNG or WebP"):
            read(path)
        with pytest.raises(ImageError, match="row 7: not a JPEG, PNG or WebP"):
            read(OTHERS[kind], "of row 7")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [8_001, 12_000, 30_000, 2**31 - 1])
def test_too_many_pixels_are_refused_before_decoding(monkeypatch: pytest.MonkeyPatch, side: int) -> None:
    def decodes(self: Image.Image) -> None:
        raise AssertionError("the header should have sufficed")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decodes)
    for read in (load_image, image_size, image_format):
        with pytest.raises(ImageError, match="limit"):
            read(png(side, side))
    with pytest.raises(ImageError, match="limit is 100"):
        load_image(WHOLE["png"], max_pixels=100)


@pytest.mark.filterwarnings("error::PIL.Image.DecompressionBombWarning")
def test_too_many_pixels_where_warnings_are_errors() -> None:
    with pytest.raises(ImageError, match="limit of 64,000,000"):
        load_image(png(12_000, 12_000))


def test_names_that_are_none(tmp_path: Path) -> None:
    for path, message in (
        (tmp_path / "none.jpg", r"none\.jpg.*no such file"),
        (tmp_path, "directory"),
        ("a\0b.jpg", r"a\\x00b\.jpg"),
        ("x" * 5000, "name too long"),
    ):
        for read in (load_image, image_size, image_format):
            with pytest.raises(ImageError, match=message):
                read(path)
    assert issubclass(ImageError, ValueError)


def exif_bomb(tags: int = 65_535) -> bytes:
    """Each tag claims the whole block for its value: read one by one, gigabytes."""
    size = 8 + 2 + 12 * tags
    entries = b"".join(struct.pack(">HHII", tag, 7, size - 8, 8) for tag in range(tags))
    return b"MM\0*\0\0\0\x08" + struct.pack(">H", tags) + entries


def bombs() -> dict[str, bytes]:
    """What is small and wants to be large; the first pixels of each are right, so that some may load."""
    rows = (b"\0" + bytes(12)) * 4
    text = zlib.compress(bytes(1 << 28), 1)  # 256 MB in a megabyte
    segment = b"\xff\xe1" + struct.pack(">H", 65_535)
    exif = exif_bomb()
    parts = [exif[i : i + 65_527] for i in range(0, len(exif) - 65_527, 65_527)]
    jpeg = WHOLE["jpeg"]
    return {
        "zTXt": png(4, 4, chunk(b"zTXt", b"key\0\0" + text), rows=rows),
        "iTXt": png(4, 4, chunk(b"iTXt", b"key\0\1\0\0\0" + text), rows=rows),
        "many zTXt": png(4, 4, *[chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(1 << 20)))] * 500, rows=rows),
        "iCCP": png(4, 4, chunk(b"iCCP", b"key\0\0" + text), rows=rows),
        "eXIf": png(4, 4, chunk(b"eXIf", exif), rows=rows),
        "late zTXt": png(4, 4, rows=rows)[:-12] + chunk(b"zTXt", b"key\0\0" + text) + chunk(b"IEND", b""),
        "rows": png(4, 4, rows=bytes(1 << 28)),
        "jpeg exif": jpeg[:2] + b"".join(segment + b"Exif\0\0" + part for part in parts) + jpeg[2:],
        "jpeg xmp": jpeg[:2] + (segment + b"http://ns.adobe.com/xap/1.0/\0".ljust(65_533, b"<")) * 200 + jpeg[2:],
        "jpeg icc": jpeg[:2]
        + (b"\xff\xe2" + struct.pack(">H", 65_535) + b"ICC_PROFILE\0".ljust(65_533)) * 200
        + jpeg[2:],
        "webp exif": encoded(PHOTO, "WEBP", exif=exif, xmp=bytes(1 << 24), icc_profile=bytes(1 << 24)),
        "webp canvas": webp(1 << 16, 1 << 15),
    }


MEASURE = """
import json, pathlib, re, sys, time, warnings
from cropl.data.images import ImageError, image_size, load_image
warnings.simplefilter("ignore")
status = pathlib.Path("/proc/self/status")
peak = lambda: int(re.search(r"VmHWM:\\s+(\\d+) kB", status.read_text())[1]) >> 10
plain, *bombs = map(pathlib.Path, sys.argv[1:])
load_image(plain)
before, found = peak(), {}
for bomb in bombs:
    started = time.process_time()
    for read in (image_size, load_image):
        try:
            outcome = read(bomb)
            outcome = outcome if isinstance(outcome, tuple) else outcome.size
        except ImageError as error:
            outcome = str(error)
    found[bomb.name] = [outcome, peak() - before, time.process_time() - started]
print(json.dumps(found))
"""


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="the peak of memory is read from Linux's /proc")
def test_bombs_stay_small(tmp_path: Path) -> None:
    """Megabytes beyond an ordinary image's, and seconds, are measured in a process of their own."""
    plain = tmp_path / "plain"
    plain.write_bytes(WHOLE["jpeg"])
    files = [plain]
    for kind, data in bombs().items():
        files.append(tmp_path / kind)
        files[-1].write_bytes(data)
    command = [sys.executable, "-c", MEASURE, *map(str, files)]
    run = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300, cwd=ROOT)
    for kind, (outcome, megabytes, seconds) in json.loads(run.stdout).items():
        assert outcome in ([4, 4], [64, 48]) or f"{kind}': " in outcome
        assert megabytes < 300 and seconds < 10, (kind, megabytes, seconds)
