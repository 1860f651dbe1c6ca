"""From an annotation to a sample: its image, checked against what the row says, and the grid label of its boxes."""

from __future__ import annotations

import io
import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from PIL import Image, ImageDraw

from cropl.data.images import MAX_ASPECT, MAX_PIXELS, ImageError, image_size, load_image, shrink
from cropl.data.readers.base import Annotation, BadRow
from cropl.data.sample import Box, Sample
from cropl.data.selection import Candidate
from cropl.grid import Region

PLACEHOLDER_SIZE = (640, 480)
"""Size of a placeholder where nothing tells that of the image."""


@dataclass(frozen=True)
class Labelling:
    """How samples are made.

    Attributes:
        placeholder: paint a picture of the right size with the boxes drawn, instead of reading images.
        resize: longest side in pixels; larger images are shrunk and encoded again (JPEG, quality 95), boxes with them.
            None copies every image byte for byte.
    """

    placeholder: bool = False
    resize: int | None = None

    def sample(
        self,
        candidate: Candidate,
        repairs: Counter[str],
        size_of: Callable[[Path], tuple[int, int]] = image_size,
    ) -> Sample:
        """The sample of a candidate.

        Args:
            candidate: the annotation.
            repairs: counts what had to be mended in its boxes.
            size_of: (width, height) of an image as displayed; raises `ImageError`.

        Raises:
            BadRow: its image is missing, unusable or of another size than stated, or no box lies inside it.
        """
        row = candidate.annotation
        image: Image.Image | bytes | Path | None
        if row.image is None:
            if row.boxes:
                raise BadRow("boxes without an image")
            image, size = None, (0, 0)
        elif self.placeholder:
            size = row.size or row.likely_size or PLACEHOLDER_SIZE
            image = placeholder(size, row.boxes)
        else:
            image = image_path(candidate)
            try:
                size = size_of(image)
            except ImageError as error:
                # Not Path.exists, which raises where a name is longer than the file system takes.
                there = os.path.exists(image)
                raise BadRow("the image cannot be used" if there else "the image is missing", error) from None
            if row.size is not None and size != row.size:
                stated = f"{row.size[0]}x{row.size[1]}"
                raise BadRow("the image has another size than stated", f"{size[0]}x{size[1]}, not {stated}: {image}")
        boxes = list(row.boxes)
        region = _region(row, size, repairs)
        if self.resize is not None and isinstance(image, Path) and max(size) > self.resize:
            image, size, boxes = _shrunk(image, size, boxes, self.resize)
        return Sample(
            key=candidate.key,
            question=row.question,
            answers=list(row.answers),
            boxes=boxes,
            width=size[0],
            height=size[1],
            region=region,
            kind=row.kind,
            source=row.source,
            split=row.split,
            image=image,
            id=row.id,
            prompt=row.prompt,
            followups=list(row.followups),
        )


def image_path(candidate: Candidate) -> Path:
    """The file of a candidate's image; BadRow if its path leaves the folder of the images."""
    named = candidate.annotation.image
    assert named is not None and candidate.images is not None
    path = PurePosixPath(named)
    if path.is_absolute() or ".." in path.parts or "\0" in named:
        raise BadRow("the image path leaves the folder", repr(named)[:120])
    return candidate.images / path


def placeholder(size: tuple[int, int], boxes: tuple[Box, ...]) -> Image.Image:
    """A grey picture of `size` with every box outlined in red; BadRow if no image of this size could be read back."""
    width, height = size
    if width * height > MAX_PIXELS:
        raise BadRow("the stated size is too large", f"{width}x{height} pixels, the limit is {MAX_PIXELS:,}")
    if max(size) > MAX_ASPECT * min(size):
        raise BadRow("the stated size is too long", f"{width}x{height}, one side is over {MAX_ASPECT} times the other")
    picture = Image.new("P", size, 0)  # two colours: scans of many megapixels are written several times as fast
    picture.putpalette([200, 203, 208, 210, 40, 40])
    pen = ImageDraw.Draw(picture)
    line = max(1, max(size) // 200)

    def near(edge: float, side: int) -> float:
        """As far outside as nothing of a line is seen: Pillow walks along every pixel of it, a billion of them too."""
        return min(max(edge, -2 * line), side + 2 * line)

    for x0, y0, x1, y1 in boxes:
        x0, x1, y0, y1 = near(x0, width), near(x1, width), near(y0, height), near(y1, height)
        pen.rectangle((min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), outline=1, width=line)
    return picture


def _region(row: Annotation, size: tuple[int, int], repairs: Counter[str]) -> Region:
    if not row.boxes:
        return Region.full()
    width, height = size
    for x0, y0, x1, y1 in row.boxes:
        if x0 > x1 or y0 > y1:
            repairs["a box with reversed corners was turned"] += 1
        left, right, top, bottom = min(x0, x1), max(x0, x1), min(y0, y1), max(y0, y1)
        if left >= min(right, width) or top >= min(bottom, height) or right <= 0 or bottom <= 0:
            repairs["a box without area in the image was left out"] += 1
        elif left < 0 or top < 0 or right > width or bottom > height:
            repairs["a box was clipped to the image"] += 1
    try:
        return Region.from_boxes(row.boxes, width, height)
    except ValueError as error:
        raise BadRow("no box has an area inside the image", error) from None


def _shrunk(
    path: Path, size: tuple[int, int], boxes: list[Box], longest: int
) -> tuple[bytes, tuple[int, int], list[Box]]:
    try:
        picture = shrink(load_image(path), longest)
    except ImageError as error:
        raise BadRow("the image cannot be used", error) from None
    x, y = picture.width / size[0], picture.height / size[1]
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=95)
    return buffer.getvalue(), picture.size, [(x0 * x, y0 * y, x1 * x, y1 * y) for x0, y0, x1, y1 in boxes]
