"""Loading images: every mode becomes what a viewer shows, and nothing hostile is decoded."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from cropl.data.images import ImageError, image_format, load_image


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size and has no pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8))


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_three_formats_from_bytes_file_and_stream(tmp_path: Path, format: str) -> None:
    data = encoded(PHOTO, format)
    path = tmp_path / "with # and ? and %20.bin"
    path.write_bytes(data)
    images = [load_image(data), load_image(path), load_image(str(path)), load_image(io.BytesIO(data))]
    assert all(image.mode == "RGB" and image.size == (64, 48) for image in images)
    assert len({image.tobytes() for image in images}) == 1
    assert image_format(data) == format


def test_orientation_is_applied() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert load_image(encoded(PHOTO, "JPEG", exif=exif)).size == (48, 64)


@pytest.mark.parametrize(
    ("image", "format", "expected"),
    [
        (Image.new("L", (4, 4), 77), "PNG", (77, 77, 77)),
        (Image.new("1", (4, 4), 1), "PNG", (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "PNG", (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 255)), "WEBP", (255, 0, 0)),
        (Image.new("LA", (4, 4), (0, 0)), "PNG", (255, 255, 255)),
        (Image.fromarray(np.full((4, 4), 257 * 100, dtype=np.uint16)), "PNG", (100, 100, 100)),
        (Image.new("CMYK", (4, 4), (0, 255, 255, 0)), "JPEG", (255, 0, 0)),
    ],
)
def test_modes(image: Image.Image, format: str, expected: tuple[int, int, int]) -> None:
    options = {"lossless": True} if format == "WEBP" else {}
    loaded = load_image(encoded(image, format, **options))
    pixel = loaded.getpixel((1, 1))
    assert loaded.mode == "RGB" and isinstance(pixel, tuple)
    assert max(abs(a - b) for a, b in zip(pixel, expected, strict=True)) <= 2


def test_a_transparent_palette_is_white() -> None:
    assert load_image(encoded(Image.new("P", (4, 4)), transparency=0)).getpixel((0, 0)) == (255, 255, 255)


def test_an_animation_is_its_first_frame() -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue")]
    data = encoded(frames[0], "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    assert load_image(data).getpixel((0, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"<html>503</html>",
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n",
        encoded(PHOTO, "BMP"),
        encoded(PHOTO, "GIF"),
        encoded(PHOTO, "TIFF"),
        encoded(PHOTO, "JPEG")[:300],
        encoded(PHOTO, "JPEG")[:-200],
        encoded(PHOTO, "PNG")[:-200],
        encoded(PHOTO, "WEBP")[:-200],
        encoded(PHOTO, "PNG")[:60],
    ],
)
def test_what_is_no_whole_image_is_refused(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "photo.jpg"
    path.write_bytes(data)
    with pytest.raises(ImageError, match=r"photo\.jpg"):
        load_image(path)
    with pytest.raises(ImageError, match="row 7"):
        load_image(data, name="of row 7")


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [8_001, 12_000, 30_000])
def test_too_many_pixels_are_refused_before_decoding(side: int) -> None:
    with pytest.raises(ImageError, match="limit"):
        load_image(png_header(side, side))


def test_missing_files_and_folders(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"none\.jpg.*no such file"):
        load_image(tmp_path / "none.jpg")
    with pytest.raises(ImageError, match="directory"):
        load_image(tmp_path)
    assert issubclass(ImageError, ValueError)
