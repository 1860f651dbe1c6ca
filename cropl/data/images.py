"""Loading images that nobody vouches for: three formats, a pixel limit, and one meaning of "the displayed image".

Pillow opens some seventy formats, starts Ghostscript for one of them, and only warns at 90 megapixels; here the format
is an allow-list and the limit an error, checked on the header before anything is decoded. The result is always RGB as a
viewer shows it: EXIF orientation applied, alpha laid on white, the first frame of an animation.
"""

import io
from pathlib import Path
from typing import BinaryIO

from PIL import Image, ImageOps

FORMATS = ("JPEG", "PNG", "WEBP")
EXTENSIONS = {"JPEG": "jpg", "PNG": "png", "WEBP": "webp"}
MAX_PIXELS = 64_000_000


class ImageError(ValueError):
    """An image that can not be used; the message names it and says why."""


def load_image(
    source: str | Path | bytes | BinaryIO, name: str | None = None, max_pixels: int = MAX_PIXELS
) -> Image.Image:
    """Decode an image as displayed, RGB.

    Args:
        source: a file, its bytes, or a binary stream.
        name: what errors call it; by default its path.
        max_pixels: images with more pixels than this are refused before decoding.

    Raises:
        ImageError: missing, unreadable, truncated, too large, or no JPEG, PNG or WebP.
    """
    name = _name(source, name)
    with _opened(source, name, max_pixels) as image:
        try:
            image.load()
            return _displayed(image)
        except Exception as error:  # decoders raise whatever they meet in hostile bytes
            raise ImageError(f"image {name}: {_reason(error)}; the file is damaged") from None


def image_format(source: str | Path | bytes | BinaryIO, name: str | None = None, max_pixels: int = MAX_PIXELS) -> str:
    """`JPEG`, `PNG` or `WEBP`, from the header.

    Raises:
        ImageError: as for `load_image`, but the pixels are not looked at.
    """
    with _opened(source, _name(source, name), max_pixels) as image:
        return str(image.format)


def _name(source: str | Path | bytes | BinaryIO, name: str | None) -> str:
    if name is not None:
        return name
    return repr(str(source)) if isinstance(source, str | Path) else "from memory"


def _opened(source: str | Path | bytes | BinaryIO, name: str, max_pixels: int) -> Image.Image:
    stream = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        image = Image.open(stream, formats=FORMATS)
    except FileNotFoundError:
        raise ImageError(f"image {name}: no such file") from None
    except Image.UnidentifiedImageError:
        raise ImageError(f"image {name}: not a JPEG, PNG or WebP image") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(f"image {name}: more pixels than the limit of {max_pixels:,}") from None
    except Exception as error:  # decoders raise whatever they meet in hostile bytes
        raise ImageError(f"image {name}: {_reason(error)}") from None
    if image.width * image.height > max_pixels:
        image.close()
        raise ImageError(f"image {name}: {image.width}x{image.height} pixels, the limit is {max_pixels:,}")
    return image


def _displayed(image: Image.Image) -> Image.Image:
    image = ImageOps.exif_transpose(image)
    if image.mode.startswith("I"):
        # 16-bit grey: Pillow would clip everything above 255 to white.
        image = image.convert("I").point(lambda value: value / 256).convert("L")
    if image.mode in ("LA", "PA", "RGBA", "La", "RGBa") or "transparency" in image.info:
        colour = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", colour.size, "white"), colour)
    return image.convert("RGB")


def _reason(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return error.strerror.lower()
    return str(error) or type(error).__name__
