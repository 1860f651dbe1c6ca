"""Loading images that nobody vouches for: three formats, limits, and one meaning of "the displayed image".

Pillow opens some seventy formats, starts Ghostscript for one of them, and only warns at 90 megapixels; here the format
is an allow-list and the limits are errors, checked on the header before anything is decoded. The result is always RGB
as a viewer shows it: orientation applied, alpha laid on white, the first frame of an animation. Colour profiles are not
applied and nothing of the metadata is kept. Missing pixels are an error; pixels that were altered cannot be told, that
is what the hash of a shard is for.
"""

import io
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import ExifTags, Image, ImageFile

FORMATS = ("JPEG", "PNG", "WEBP")
EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
MAX_PIXELS = 64_000_000
MAX_ASPECT = 200
"""The longer side by the shorter: Qwen2-VL's processor takes no more."""

_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
"""What shows an image of this EXIF orientation upright."""
_SIDEWAYS = (5, 6, 7, 8)

Source = str | Path | bytes | BinaryIO


class ImageError(ValueError):
    """An image that can not be used; the message names it and says why."""


def load_image(
    source: Source,
    name: str | None = None,
    max_pixels: int = MAX_PIXELS,
    at_least: tuple[int, int] | None = None,
    max_aspect: float = MAX_ASPECT,
) -> Image.Image:
    """Decode an image as displayed, RGB.

    Args:
        source: a file, its bytes, or a binary stream.
        name: what errors call it; by default its path.
        max_pixels: images with more pixels than this are refused before decoding.
        at_least: displayed (width, height) that will do: a larger JPEG is decoded, much faster, at the half, quarter
            or eighth of its size that is still as large. Other formats come in their own size.
        max_aspect: images whose longer side is more than this many times the shorter are refused.

    Raises:
        ImageError: missing, unreadable, truncated, too large, too long, or no JPEG, PNG or WebP; also while
            `PIL.ImageFile.LOAD_TRUNCATED_IMAGES` is set, with which Pillow makes up the pixels that are missing.
        ValueError: `at_least` is below 1.
    """
    name = _name(source, name)
    if at_least is not None and min(at_least) < 1:
        raise ValueError(f"at_least={at_least}: an image has at least 1 pixel")
    if ImageFile.LOAD_TRUNCATED_IMAGES:
        raise ImageError(
            f"image {name}: something set PIL.ImageFile.LOAD_TRUNCATED_IMAGES, with which missing pixels go unnoticed; "
            "set it back to False"
        )
    with _opened(source, name, max_pixels, max_aspect) as image:
        turn = _orientation(image)
        try:
            if at_least is not None:
                image.draft(None, at_least[::-1] if turn in _SIDEWAYS else at_least)
            _mend_transparency(image)
            image.load()
            shown = _on_white(image)
            return shown.transpose(_TURNS[turn]) if turn in _TURNS else shown
        except Exception as error:  # decoders raise whatever they meet in hostile bytes
            raise ImageError(f"image {name}: {_reason(error)}; the file is damaged") from None


def image_size(
    source: Source, name: str | None = None, max_pixels: int = MAX_PIXELS, max_aspect: float = MAX_ASPECT
) -> tuple[int, int]:
    """The (width, height) that `load_image` returns, in pixels, from the header.

    Raises:
        ImageError: as for `load_image`, but the pixels are not looked at.
    """
    with _opened(source, _name(source, name), max_pixels, max_aspect) as image:
        return image.size[::-1] if _orientation(image) in _SIDEWAYS else image.size


def image_format(source: Source, name: str | None = None, max_pixels: int = MAX_PIXELS) -> str:
    """`JPEG`, `PNG` or `WEBP`, from the header.

    Raises:
        ImageError: as for `load_image`, but the pixels are not looked at.
    """
    with _opened(source, _name(source, name), max_pixels, MAX_ASPECT) as image:
        # Phones append depth maps and the like to a JPEG, which Pillow then calls MPO.
        return "JPEG" if image.format == "MPO" else str(image.format)


def shrink(image: Image.Image, longest: int) -> Image.Image:
    """The image with its longer side of at most `longest` pixels, in its shape, and no longer than `MAX_ASPECT` allows.

    Raises:
        ValueError: `longest` is below 1.
    """
    if longest < 1:
        raise ValueError(f"longest={longest}: an image has at least 1 pixel")
    scale = longest / max(image.size)
    if scale >= 1:
        return image
    width, height = (max(round(side * scale), -(-longest // MAX_ASPECT)) for side in image.size)
    return image.resize((width, height), Image.Resampling.BICUBIC, reducing_gap=3.0)


def _name(source: Source, name: str | None) -> str:
    if name is not None:
        return name
    return repr(str(source)) if isinstance(source, str | Path) else "from memory"


def _opened(source: Source, name: str, max_pixels: int, max_aspect: float) -> Image.Image:
    """The header, within the limits."""
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        image = Image.open(stream, formats=FORMATS)
    except FileNotFoundError:
        raise ImageError(f"image {name}: no such file") from None
    except Image.UnidentifiedImageError:
        raise ImageError(f"image {name}: not a JPEG, PNG or WebP image") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        pillow = 2 * (Image.MAX_IMAGE_PIXELS or max_pixels)
        raise ImageError(f"image {name}: more pixels than the limit of {min(max_pixels, pillow):,}") from None
    except Exception as error:  # decoders raise whatever they meet in hostile bytes
        raise ImageError(f"image {name}: {_reason(error)}") from None
    width, height = image.size
    fault = None
    if width * height > max_pixels:
        fault = f"{width}x{height} pixels, the limit is {max_pixels:,}"
    elif max(width, height) > max_aspect * min(width, height):
        fault = f"{width}x{height} pixels, one side is more than {max_aspect} times the other; crop it"
    if fault is not None:
        image.close()
        raise ImageError(f"image {name}: {fault}")
    return image


def _orientation(image: Image.Image) -> int:
    """EXIF orientation, 1 to 8; 1 also where there is none, or none that can be read: viewers turn nothing then."""
    try:
        # The base class reads what stands before the pixels. A PNG's own would decode them to look behind.
        turn = Image.Image.getexif(image).get(ExifTags.Base.Orientation)
    except Exception:  # hostile bytes again
        return 1
    return turn if isinstance(turn, int) and turn in _TURNS else 1


def _mend_transparency(image: Image.Image) -> None:
    """A PNG's one clear colour, in the bits of the pixels: Pillow widens or narrows those and leaves the colour."""
    clear = image.info.get("transparency")
    tiles = getattr(image, "tile", None)
    bits = tiles[0][3] if tiles else None
    if bits in ("L;2", "L;4") and isinstance(clear, int):
        image.info["transparency"] = clear * (85 if bits == "L;2" else 17)
    elif bits == "RGB;16B" and isinstance(clear, tuple):
        image.info["transparency"] = tuple(value >> 8 for value in clear)


def _on_white(image: Image.Image) -> Image.Image:
    """RGB without metadata, so that nobody turns it twice or carries a megabyte of profile about."""
    clear = image.info.get("transparency")
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow would clip everything above 255 to white.
        wide = np.asarray(image)
        grey = (wide >> 8).astype(np.uint8)
        if clear is not None:
            grey[wide == clear] = 255
        return Image.fromarray(grey).convert("RGB")
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or clear is not None:
        colour = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colour.size, "white"), colour)
    shown = image.convert("RGB")
    shown.info = {}
    return shown


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
