"""Loading images: every mode, orientation and kind of animation becomes what a viewer shows."""

import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from cropl.data.images import ImageError, image_format, image_size, load_image, shrink

PHOTO = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8))
PHOTOS = Path(os.environ.get("CROPL_TEST_DATA", Path(__file__).parents[3] / "shared" / "data")) / "photos"


def encoded(image: Image.Image, format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def oriented(image: Image.Image, orientation: int, format: str = "JPEG", **options: Any) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(image, format, exif=exif, **options)


def png(width: int, height: int, bits: int, colour: int, rows: bytes, *extra: tuple[bytes, bytes]) -> bytes:
    """A PNG by hand: `colour` 0 is grey, 2 RGB; `rows` each begin with a zero; `extra` chunks before the pixels."""
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    chunks = [(b"IHDR", header), *extra, (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks
    )


def pixel(image: Image.Image, x: int = 0, y: int = 0) -> tuple[int, int, int]:
    assert image.mode == "RGB" and image.info == {}
    found = image.getpixel((x, y))
    assert isinstance(found, tuple) and len(found) == 3
    return found


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
def test_three_formats_from_bytes_file_and_stream(tmp_path: Path, format: str) -> None:
    data = encoded(PHOTO, format)
    path = tmp_path / "with # and ? and %20.bin"
    path.write_bytes(data)
    images = [load_image(data), load_image(path), load_image(str(path)), load_image(io.BytesIO(data))]
    assert all(image.mode == "RGB" and image.size == (64, 48) for image in images)
    assert len({image.tobytes() for image in images}) == 1
    assert image_format(data) == format and image_size(path) == (64, 48)


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_orientation_is_applied_once(monkeypatch: pytest.MonkeyPatch, orientation: int, format: str) -> None:
    data = oriented(PHOTO, orientation, format)
    loaded = load_image(data)
    reference = ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB")
    assert loaded.size == ((64, 48) if orientation < 5 else (48, 64)) == reference.size
    assert loaded.tobytes() == reference.tobytes()
    assert ImageOps.exif_transpose(loaded).tobytes() == loaded.tobytes()  # whoever turns it again turns nothing

    def decodes(self: Image.Image) -> None:
        raise AssertionError("a size is read from the header")

    monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decodes)
    assert image_size(data) == loaded.size


@pytest.mark.parametrize("orientation", [0, 9, 65535])
def test_an_orientation_that_does_not_exist_turns_nothing(orientation: int) -> None:
    assert load_image(oriented(PHOTO, orientation)).size == image_size(oriented(PHOTO, orientation)) == (64, 48)


@pytest.mark.parametrize(
    "exif", [b"", b"nonsense", b"Exif\0\0MM\0*\xff\xff\xff\xff", b"Exif\0\0II*\0\x08\0\0\0\xff\xff"]
)
@pytest.mark.filterwarnings("ignore::UserWarning")
def test_exif_that_cannot_be_read_turns_nothing(exif: bytes) -> None:
    data = encoded(PHOTO, "JPEG", exif=exif)
    assert load_image(data).size == image_size(data) == (64, 48)


@pytest.mark.parametrize(
    ("image", "format", "expected"),
    [
        (Image.new("L", (4, 4), 77), "PNG", (77, 77, 77)),
        (Image.new("L", (4, 4), 77), "JPEG", (77, 77, 77)),
        (Image.new("1", (4, 4), 1), "PNG", (255, 255, 255)),
        (Image.new("1", (4, 4), 0), "PNG", (0, 0, 0)),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 0)), "PNG", (255, 255, 255)),
        (Image.new("RGBA", (4, 4), (0, 0, 0, 51)), "PNG", (204, 204, 204)),
        (Image.new("RGBA", (4, 4), (255, 0, 0, 255)), "WEBP", (255, 0, 0)),
        (Image.new("RGBA", (4, 4), (0, 0, 0, 51)), "WEBP", (204, 204, 204)),
        (Image.new("LA", (4, 4), (0, 0)), "PNG", (255, 255, 255)),
        (Image.new("LA", (4, 4), (100, 255)), "PNG", (100, 100, 100)),
        (Image.new("RGB", (4, 4), "green").quantize(4), "PNG", (0, 128, 0)),
        (Image.fromarray(np.full((4, 4), 257 * 100, dtype=np.uint16)), "PNG", (100, 100, 100)),
        (Image.fromarray(np.full((4, 4), 65535, dtype=np.uint16)), "PNG", (255, 255, 255)),
        (Image.new("CMYK", (16, 16), (0, 255, 255, 0)), "JPEG", (255, 0, 0)),
        (Image.new("CMYK", (16, 16), (0, 0, 0, 255)), "JPEG", (0, 0, 0)),
        (Image.new("YCbCr", (16, 16), (76, 85, 255)), "JPEG", (254, 0, 0)),
    ],
)
def test_modes(image: Image.Image, format: str, expected: tuple[int, int, int]) -> None:
    data = encoded(image, format, **({"lossless": True, "exact": True} if format == "WEBP" else {}))
    assert max(abs(a - b) for a, b in zip(pixel(load_image(data), 1, 1), expected, strict=True)) <= 2


def test_inverted_ycck_of_adobe() -> None:
    """Printers' JPEGs: CMYK as luminance and chrominance, and the other way round."""
    shown = (200, 40, 60)
    y, cb, cr = Image.new("RGB", (1, 1), tuple(255 - value for value in shown)).convert("YCbCr").getpixel((0, 0))  # type: ignore[misc]
    data = encoded(Image.new("CMYK", (16, 16), (255 - y, 255 - cb, 255 - cr, 0)), "JPEG", quality=95)
    at = data.index(b"Adobe") + 11
    assert data[at] == 0  # transform: plain CMYK; 2 is YCCK
    loaded = load_image(data[:at] + b"\2" + data[at + 1 :])
    assert max(abs(a - b) for a, b in zip(pixel(loaded, 5, 5), shown, strict=True)) <= 3


GREY, RGB = 0, 2


@pytest.mark.parametrize(
    ("bits", "colour", "row", "clear"),
    [
        (2, GREY, b"\x24", (2,)),
        (4, GREY, b"\x29", (9,)),
        (8, GREY, bytes([7, 99]), (99,)),
        (16, GREY, struct.pack(">2H", 7000, 40000), (40000,)),
        (8, RGB, bytes([1, 2, 3, 9, 8, 7]), (9, 8, 7)),
        (16, RGB, struct.pack(">6H", 1, 2, 3, 40000, 30000, 20000), (40000, 30000, 20000)),
    ],
)
def test_the_clear_colour_of_a_png_is_white(bits: int, colour: int, row: bytes, clear: tuple[int, ...]) -> None:
    loaded = load_image(png(2, 1, bits, colour, b"\0" + row, (b"tRNS", struct.pack(f">{len(clear)}H", *clear))))
    plain = load_image(png(2, 1, bits, colour, b"\0" + row))
    assert pixel(loaded, 1) == (255, 255, 255) != pixel(plain, 1)
    assert pixel(loaded, 0) == pixel(plain, 0) != (255, 255, 255)


def test_a_clear_black_in_one_bit() -> None:
    loaded = load_image(png(2, 1, 1, GREY, b"\0\x40", (b"tRNS", b"\0\0")))
    assert pixel(loaded, 0) == pixel(loaded, 1) == (255, 255, 255)


def test_a_palette_with_transparency() -> None:
    image = Image.new("P", (4, 4))
    image.putpalette([200, 0, 0, 0, 0, 200])
    image.putpixel((1, 0), 1)
    loaded = load_image(encoded(image, transparency=0))
    assert pixel(loaded, 0) == (255, 255, 255) and pixel(loaded, 1) == (0, 0, 200)
    half = load_image(encoded(image, transparency=bytes([0, 51])))
    assert pixel(half, 0) == (255, 255, 255) and pixel(half, 1) == (204, 204, 244)


@pytest.mark.parametrize("format", ["WEBP", "PNG"])
def test_an_animation_is_its_first_frame(format: str) -> None:
    frames = [Image.new("RGB", (8, 8), colour) for colour in ("red", "blue", "green")]
    lossless = {"lossless": True} if format == "WEBP" else {}
    data = encoded(frames[0], format, save_all=True, append_images=frames[1:], **lossless)
    assert getattr(Image.open(io.BytesIO(data)), "n_frames", 1) == 3
    assert pixel(load_image(data)) == (255, 0, 0) and image_format(data) == format


def test_a_phone_s_jpeg_with_appended_pictures() -> None:
    data = encoded(PHOTO, "MPO", save_all=True, append_images=[PHOTO.resize((8, 8))])
    assert Image.open(io.BytesIO(data)).format == "MPO"
    assert image_format(data) == "JPEG" and load_image(data).size == image_size(data) == (64, 48)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize(
    ("at_least", "expected"),
    [
        ((1, 1), (100, 75)),
        ((100, 75), (100, 75)),
        ((100, 76), (200, 150)),
        ((101, 1), (200, 150)),
        ((201, 150), (400, 300)),
        ((800, 600), (800, 600)),
        ((9000, 9000), (800, 600)),
    ],
)
def test_a_large_jpeg_at_least_this_large(orientation: int, at_least: Any, expected: Any) -> None:
    image = Image.linear_gradient("L").convert("RGB").resize((800, 600))
    turned = 1 if orientation == 1 else -1
    data = oriented(image, orientation)
    small = load_image(data, at_least=at_least[::turned])
    assert small.size == expected[::turned] and image_size(data) == (800, 600)[::turned]
    exact = load_image(data).resize(small.size)
    assert np.abs(np.asarray(small, dtype=int) - np.asarray(exact, dtype=int)).mean() < 2
    whole = encoded(image, "PNG")
    assert load_image(whole, at_least=at_least).size == (800, 600)


@pytest.mark.parametrize(
    ("size", "longest", "expected"),
    [
        ((640, 480), 320, (320, 240)),
        ((480, 640), 320, (240, 320)),
        ((501, 333), 100, (100, 66)),
        ((64, 48), 64, (64, 48)),
        ((64, 48), 100, (64, 48)),
        ((1990, 10), 448, (448, 3)),  # 448 x 2 would be longer than a model takes
        ((3, 3), 1, (1, 1)),
    ],
)
def test_shrink(size: tuple[int, int], longest: int, expected: tuple[int, int]) -> None:
    image = Image.radial_gradient("L").convert("RGB").resize(size)
    small = shrink(image, longest)
    assert small.size == expected and small.mode == "RGB"
    exact = np.asarray(image.resize(expected, Image.Resampling.BICUBIC), dtype=int)
    assert np.abs(np.asarray(small, dtype=int) - exact).mean() < 2


def test_sizes_below_one_are_refused() -> None:
    with pytest.raises(ValueError, match="longest=0"):
        shrink(PHOTO, 0)
    with pytest.raises(ValueError, match="at_least"):
        load_image(encoded(PHOTO), at_least=(0, 4))


@pytest.mark.parametrize("size", [(1, 1), (200, 1), (1, 200), (2000, 10)])
def test_the_longest_shapes_that_a_model_takes(size: tuple[int, int]) -> None:
    assert load_image(encoded(Image.new("RGB", size))).size == size


@pytest.mark.parametrize("size", [(201, 1), (1, 201), (8000, 2)])
def test_longer_shapes_are_refused(size: tuple[int, int]) -> None:
    data = encoded(Image.new("RGB", size))
    for read in (load_image, image_size):
        with pytest.raises(ImageError, match=rf"strip: {size[0]}x{size[1]} .*more than 200 times"):
            read(data, "strip")
    assert load_image(data, max_aspect=9000).size == size
    with pytest.raises(ImageError, match="more than 3 times"):
        load_image(encoded(Image.new("RGB", (31, 10))), max_aspect=3)


def test_real_photographs() -> None:
    if not PHOTOS.is_dir():
        pytest.skip(f"no photographs at {PHOTOS}: set CROPL_TEST_DATA to the folder of test data")
    paths = sorted(PHOTOS.glob("*.jpg"))
    assert paths
    for path in paths:
        image = load_image(path)
        assert image.mode == "RGB" and image.size == image_size(path)
        half = load_image(path, at_least=(image.width // 2, image.height // 2))
        assert half.width == -(-image.width // 2) and half.height == -(-image.height // 2)
