"""The images of a set of samples: which samples share one, and the same image with its evidence hidden or alone.

The controls tell whether a benchmark measures seeing at all. Without image content a model can only guess from the
question; with the evidence painted over it should fall far below dense; with the evidence alone it should be near.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from PIL import Image, ImageDraw

if TYPE_CHECKING:
    from cropl.data.sample import Sample

GREY = (127, 127, 127)


def image_key(sample: Sample) -> str:
    """Equal for samples that share an image: its path, a digest of its bytes, or which object in memory it is.

    A sample without an image shares none.
    """
    image = sample.image
    if image is None:
        return f"none-{sample.key}"
    if isinstance(image, Image.Image):
        return f"memory-{id(image)}"
    if isinstance(image, bytes):
        return hashlib.sha1(image, usedforsecurity=False).hexdigest()
    return str(image)


def displayed(sample: Sample) -> Image.Image:
    """The image as displayed, RGB. ValueError names the sample when the file cannot be used or has another size."""
    image = sample.picture()
    if image.size != (sample.width, sample.height):
        raise ValueError(
            f"sample {sample.key!r}: its image has {image.width}x{image.height} pixels, its record says "
            f"{sample.width}x{sample.height}; boxes would fall on the wrong place"
        )
    return image


def by_image(samples: Sequence[Sample]) -> list[list[int]]:
    """Indices of samples grouped by image, in order of first appearance."""
    groups: dict[str, list[int]] = {}
    for index, sample in enumerate(samples):
        groups.setdefault(image_key(sample), []).append(index)
    return list(groups.values())


def controlled(image: Image.Image, sample: Sample, control: str | None) -> Image.Image:
    """The image for a control run: `blank_image`, `evidence_masked`, `evidence_only`, or as it is for None.

    Boxes are painted a little larger than the evidence, two pixels on each side, so that no coloured rim is left.
    """
    if control is None:
        return image
    grey = Image.new("RGB", image.size, GREY)
    if control == "blank_image":
        return grey
    evidence = Image.new("L", image.size, 0)
    pen = ImageDraw.Draw(evidence)
    for x0, y0, x1, y1 in sample.boxes:
        pen.rectangle((min(x0, x1) - 2, min(y0, y1) - 2, max(x0, x1) + 2, max(y0, y1) + 2), fill=255)
    if control == "evidence_masked":
        return Image.composite(grey, image, evidence)
    if control == "evidence_only":
        return Image.composite(image, grey, evidence)
    raise ValueError(f"control {control!r} is unknown: blank_image, evidence_masked or evidence_only")
