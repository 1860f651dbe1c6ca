"""Contextual regions on an 8x8 grid, and the visual tokens that they cover: exact integer geometry, no torch.

A `Region` names blocks of the image **as displayed** (EXIF applied), in fractions of it, so one region serves every
model. A `TokenGrid` says where one model's visual tokens lie over that image (LLaVA-1.5 pads it to a square, Qwen2-VL
stretches it), and maps a region to tokens: a token whose cell overlaps the region is kept, in exact integers
(`cropl.axis`). Families whose tokens lie on several grids at once have a `TokenMap` of such grids (`cropl.tiling`).
"""

import math
import operator
import random
import re
from collections.abc import Iterable, Sequence
from dataclasses import FrozenInstanceError, dataclass
from fractions import Fraction

from cropl import axis
from cropl.axis import GRID as GRID

_REGION_TEXT = re.compile(r"\s*(-?[0-9]+)\s*,\s*(-?[0-9]+)\s*,\s*(-?[0-9]+)\s*,\s*(-?[0-9]+)\s*")


class _Immutable:
    """Refuses a changed field, and allows the same value again.

    `frozen=True` would refuse that too, and with it any batch that holds such an object: Lightning copies a batch's
    dataclasses by assigning every field once more.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if name in self.__dict__ and self.__dict__[name] != value:
            raise FrozenInstanceError(f"{type(self).__name__}.{name} can not be changed")
        object.__setattr__(self, name, value)


@dataclass(unsafe_hash=True)
class Region(_Immutable):
    """A rectangle of blocks: inclusive, 0-based `(x_min, y_min, x_max, y_max)` on the 8x8 grid.

    Example:
        >>> truth = Region.from_boxes([(100, 40, 260, 180)], width=640, height=480)
        >>> truth
        Region(x_min=1, y_min=0, x_max=3, y_max=2)
        >>> Region(1, 0, 2, 2).recall_against(truth)
        0.6666666666666666

    Raises:
        ValueError: a coordinate is no integer or lies outside 0..7, or a minimum exceeds its maximum.
    """

    x_min: int
    y_min: int
    x_max: int
    y_max: int

    def __post_init__(self) -> None:
        for name in ("x_min", "y_min", "x_max", "y_max"):
            value = getattr(self, name)
            try:
                block = operator.index(value)
            except TypeError:
                block = -1
            if isinstance(value, bool) or not 0 <= block < GRID:
                raise ValueError(f"region {name}={value!r}: must be an integer from 0 to {GRID - 1}")
            setattr(self, name, block)  # an int of Python, whatever it was
        for low, high in (("x_min", "x_max"), ("y_min", "y_max")):
            if getattr(self, low) > getattr(self, high):
                raise ValueError(
                    f"region is reversed: {low}={getattr(self, low)} > {high}={getattr(self, high)}; "
                    "give x_min,y_min,x_max,y_max"
                )

    @classmethod
    def full(cls) -> "Region":
        """The whole image."""
        return cls(0, 0, GRID - 1, GRID - 1)

    @classmethod
    def parse(cls, text: str) -> "Region":
        """Read `"x0,y0,x1,y1"`, the form of the command line.

        Raises:
            ValueError: the text is not four integers, or they are no region.
        """
        match = _REGION_TEXT.fullmatch(text)
        if match is None:
            raise ValueError(f"region {text!r}: expected four integers 'x_min,y_min,x_max,y_max', each 0 to {GRID - 1}")
        return cls(*(int(number) for number in match.groups()))

    @classmethod
    def from_boxes(cls, boxes_xyxy: Iterable[Sequence[float]], width: int, height: int) -> "Region":
        """The smallest region that covers every box: `x_min = floor(8 x0 / W)`, `x_max = ceil(8 x1 / W) - 1`.

        Args:
            boxes_xyxy: boxes `(x0, y0, x1, y1)` in pixels of the displayed image. Reversed corners are swapped, boxes
                are clipped to the image, and boxes without area inside it are dropped (published data has both).
            width, height: the size of the displayed image in pixels.

        Raises:
            ValueError: no box is left, a box is not four finite numbers, or the image has no area.
        """
        if width < 1 or height < 1:
            raise ValueError(f"image of {width}x{height} pixels has no area")
        given = [tuple(box) for box in boxes_xyxy]
        kept = [clipped for box in given if (clipped := clip_box(box, width, height)) is not None]
        if not kept:
            raise ValueError(f"no box has an area inside the {width}x{height} image: {given!r}")
        return cls(
            min(math.floor(box[0] * GRID / width) for box in kept),
            min(math.floor(box[1] * GRID / height) for box in kept),
            max(math.ceil(box[2] * GRID / width) for box in kept) - 1,
            max(math.ceil(box[3] * GRID / height) for box in kept) - 1,
        )

    @property
    def width(self) -> int:
        """Width in blocks."""
        return self.x_max - self.x_min + 1

    @property
    def height(self) -> int:
        """Height in blocks."""
        return self.y_max - self.y_min + 1

    @property
    def area(self) -> int:
        """Area in blocks, 1 to 64."""
        return self.width * self.height

    def as_tuple(self) -> tuple[int, int, int, int]:
        """`(x_min, y_min, x_max, y_max)`."""
        return self.x_min, self.y_min, self.x_max, self.y_max

    def edges(self) -> tuple[int, int, int, int]:
        """Left, top, right and bottom edge, in eighths of the image (right and bottom are exclusive)."""
        return self.x_min, self.y_min, self.x_max + 1, self.y_max + 1

    def cells(self) -> list[tuple[int, int]]:
        """The blocks `(x, y)`, row by row."""
        return [(x, y) for y in range(self.y_min, self.y_max + 1) for x in range(self.x_min, self.x_max + 1)]

    def intersection(self, other: "Region") -> int:
        """Blocks in both regions."""
        width = min(self.x_max, other.x_max) - max(self.x_min, other.x_min) + 1
        height = min(self.y_max, other.y_max) - max(self.y_min, other.y_min) + 1
        return max(width, 0) * max(height, 0)

    def recall_against(self, truth: "Region") -> float:
        """Area recall of this prediction: |truth and prediction| / |truth| (paper, Appendix D.3)."""
        return self.intersection(truth) / truth.area

    def iou(self, other: "Region") -> float:
        """Intersection over union, in blocks."""
        shared = self.intersection(other)
        return shared / (self.area + other.area - shared)

    def centered(self) -> "Region":
        """The region of the same size in the middle of the image (paper, Table 10); odd rests go right and down."""
        return self._at((GRID - self.width) // 2, (GRID - self.height) // 2)

    def moved(self, rng: random.Random) -> "Region":
        """The region of the same size at a uniformly random position (paper, Table 10)."""
        return self._at(rng.randint(0, GRID - self.width), rng.randint(0, GRID - self.height))

    def _at(self, x: int, y: int) -> "Region":
        return Region(x, y, x + self.width - 1, y + self.height - 1)


def clip_box(box: Sequence[float], width: int, height: int) -> tuple[Fraction, Fraction, Fraction, Fraction] | None:
    """Order a pixel box's corners and clip it to the image; None if no area is left. Exact, hence the fractions.

    Raises:
        ValueError: the box is not four finite numbers.
    """
    try:
        x0, y0, x1, y1 = (_exact(value) for value in box)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"box {tuple(box)!r}: expected four finite numbers x0, y0, x1, y1 in pixels") from None
    x0, x1 = max(min(x0, x1), Fraction(0)), min(max(x0, x1), Fraction(width))
    y0, y1 = max(min(y0, y1), Fraction(0)), min(max(y0, y1), Fraction(height))
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _exact(value: float) -> Fraction:
    if isinstance(value, str):  # float("12") would do, but a box of strings is a reader's mistake
        raise TypeError
    return Fraction(value) if isinstance(value, int) else Fraction(float(value))


@dataclass(unsafe_hash=True)
class TokenGrid(_Immutable):
    """`rows` x `cols` visual tokens, row-major, over a pixel window that covers the displayed image.

    The window is `(left, top, width, height)` in image pixels; it may reach beyond the image (padding).

    Example (a wide image in LLaVA-1.5: rows 7 to 13 and columns 3 to 11 of 24 x 24 overlap the region):
        >>> TokenGrid.padded_square(24, 640, 480).span(Region(1, 2, 3, 4))
        (7, 15, 3, 12)

    Raises:
        ValueError: a size is not positive, or the window does not cover the image.
    """

    rows: int
    cols: int
    left: int
    top: int
    width: int
    height: int
    image_width: int
    image_height: int

    def __post_init__(self) -> None:
        for name in ("rows", "cols", "width", "height", "image_width", "image_height"):
            if getattr(self, name) < 1:
                raise ValueError(f"token grid {name}={getattr(self, name)}: must be at least 1")
        lost_x, lost_y = self._allowed()
        right, bottom = self.left + self.width, self.top + self.height
        lost = (self.left, self.top, self.image_width - right, self.image_height - bottom)
        if any(part > allowed for part, allowed in zip(lost, (lost_x, lost_y, lost_x, lost_y), strict=True)):
            raise ValueError(
                f"token window ({self.left}, {self.top}, {right}, {bottom}) does not cover the "
                f"{self.image_width}x{self.image_height} image: a crop would lose regions"
            )

    def _allowed(self) -> tuple[int, int]:
        """How many pixels of the image may lie outside of the window, at each side and at the top and bottom."""
        return 0, 0

    @classmethod
    def padded_square(cls, side: int, image_width: int, image_height: int) -> "TokenGrid":
        """LLaVA-1.5: the image in the middle of a square of its longer side, `side` x `side` tokens."""
        size = max(image_width, image_height)
        left, top = -((size - image_width) // 2), -((size - image_height) // 2)
        return cls(side, side, left, top, size, size, image_width, image_height)

    @classmethod
    def stretched(cls, rows: int, cols: int, image_width: int, image_height: int) -> "TokenGrid":
        """Qwen2-VL: the image resized onto the grid, without padding."""
        return cls(rows, cols, 0, 0, image_width, image_height, image_width, image_height)

    @property
    def num_tokens(self) -> int:
        """Number of visual tokens V."""
        return self.rows * self.cols

    def span(self, region: Region) -> tuple[int, int, int, int]:
        """Half-open token ranges `(r0, r1, c0, c1)` whose cells overlap the region; never empty."""
        rows, cols = self._axes(region)
        return *axis.span(*rows), *axis.span(*cols)

    def axis_reach(self, region: Region, clamp: bool = True) -> tuple[list[float], list[float]]:
        """`reach` per row (length `rows`) and per column (length `cols`); a token's reach is the larger of its two.

        With `clamp=False` rows and columns that lie wholly in the padding have finite values as well.
        """
        rows, cols = self._axes(region)
        return axis.reach(*rows, clamp), axis.reach(*cols, clamp)

    def reach(self, region: Region, clamp: bool = True) -> list[float]:
        """For each token (row-major) the scale factor beyond which the region, scaled about its centre, overlaps it.

        A token is kept at factor f > 0 exactly if `reach < f`; f = 1 gives `span`. The scaled rectangle is clamped to
        the image, so tokens wholly in the padding have `math.inf` (finite values with `clamp=False`). Only the token
        that strictly contains the centre is negative.
        """
        rows, cols = self.axis_reach(region, clamp)
        return [row if row > col else col for row in rows for col in cols]

    def distance(self, region: Region) -> list[float]:
        """Squared distance from each token's centre (row-major) to the region's, in tokens; mirrored ones are equal."""
        rows, cols = ([offset**2 for offset in axis.offsets(*line)] for line in self._axes(region))
        return [row + col for row in rows for col in cols]

    def _axes(self, region: Region) -> tuple[axis.Line, axis.Line]:
        """Rows and columns as `cropl.axis` takes them."""
        x0, y0, x1, y1 = region.edges()
        return (
            (self.rows, self.top, self.height, self.image_height, y0, y1),
            (self.cols, self.left, self.width, self.image_width, x0, x1),
        )
