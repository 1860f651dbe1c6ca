"""Visual tokens on several grids over one image: a whole view and tiles, as LLaVA-NeXT and InternVL have them.

A `TileGrid` is one grid with an order in which the model lists its tokens: row by row, with a newline token behind each
row where the family has them, or tile by tile. A `TokenMap` is several grids, one after the other. Whoever prunes or
spends a budget asks any `Tokens` for reaches and distances, never for rows and columns, and gives regions or unions of
them to the functions below.

A newline token is no place in the image. It belongs to its row: its reach and distance are the least of the row's, so
it is kept exactly where any token of the row is, and counts as a token. Where an exact count ends between tokens of
equal reach and distance, a row's newline comes right behind the row's tokens, so at most one is left out for it.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from cropl.grid import Region, TokenGrid, _Immutable

Regions = Region | Sequence[Region]
"""What one image keeps: a region, or the union of several."""


class Tokens(Protocol):
    """The visual tokens of one image, in the model's order: a `TokenGrid`, or a `TokenMap` of several."""

    @property
    def num_tokens(self) -> int:
        """Number of visual tokens V."""

    @property
    def image_width(self) -> int:
        """Width of the displayed image in pixels."""

    @property
    def image_height(self) -> int:
        """Its height."""

    def reach(self, region: Region, clamp: bool = True) -> list[float]:
        """For each token the scale factor beyond which it is kept, see `TokenGrid.reach`."""

    def distance(self, region: Region) -> list[float]:
        """Squared distance from each token's centre to the region's, in tokens of its grid."""


@dataclass(unsafe_hash=True)
class TileGrid(TokenGrid):
    """A grid cut into tiles, measured in the pixels of the image as it was resized for them.

    `image_width` and `image_height` are those of the resized image. The window may miss less than one token of it at
    each side (unpadding cuts at whole tokens); what is missed belongs to the tokens at that side.

    Attributes:
        newline: whether a newline token follows each row.
        tile: side of a tile in tokens where the model lists the tokens tile by tile, 0 where row by row.
    """

    newline: bool = False
    tile: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.tile and (self.newline or self.rows % self.tile or self.cols % self.tile):
            raise ValueError(f"tiles of {self.tile} tokens do not make up {self.rows} x {self.cols} (without newlines)")

    @property
    def num_tokens(self) -> int:
        return self.rows * (self.cols + self.newline)

    def order(self) -> list[int | None]:
        """The row-major place of each token in the model's order, None for a newline."""
        rows, cols, tile = self.rows, self.cols, self.tile or max(self.rows, self.cols)
        places: list[int | None] = []
        for top in range(0, rows, tile):
            for left in range(0, cols, tile):
                for row in range(top, min(top + tile, rows)):
                    places += range(row * cols + left, row * cols + min(left + tile, cols))
                    places += [None] * self.newline
        return places

    def reach(self, region: Region, clamp: bool = True) -> list[float]:
        return self._listed(super().reach(region, clamp))

    def distance(self, region: Region) -> list[float]:
        return self._listed(super().distance(region))

    def _listed(self, values: list[float]) -> list[float]:
        least = iter([min(values[first : first + self.cols]) for first in range(0, len(values), self.cols)])
        return [next(least) if place is None else values[place] for place in self.order()]

    def _allowed(self) -> tuple[int, int]:
        return (self.width - 1) // self.cols, (self.height - 1) // self.rows


@dataclass(unsafe_hash=True)
class TokenMap(_Immutable):
    """The tokens of several grids over the same image, one grid after the other.

    Attributes:
        grids: each measures the image in pixels of its own.
        image_width, image_height: of the displayed image in pixels.
        crops: pictures that the vision tower is shown for them.

    Raises:
        ValueError: there is no grid.
    """

    grids: tuple[TokenGrid, ...]
    image_width: int
    image_height: int
    crops: int = 1

    def __post_init__(self) -> None:
        if not self.grids:
            raise ValueError("a token map has at least one grid")

    @property
    def num_tokens(self) -> int:
        """Number of visual tokens V, newlines included."""
        return sum(grid.num_tokens for grid in self.grids)

    def reach(self, region: Region, clamp: bool = True) -> list[float]:
        """As `TokenGrid.reach`, for the tokens of all grids."""
        return [value for grid in self.grids for value in grid.reach(region, clamp)]

    def distance(self, region: Region) -> list[float]:
        """As `TokenGrid.distance`, for the tokens of all grids, each in tokens of its own grid."""
        return [value for grid in self.grids for value in grid.distance(region)]


def members(regions: Regions) -> tuple[Region, ...]:
    """The regions of a union, which may be a single one.

    Raises:
        ValueError: it is empty, or something in it is no region.
    """
    found = (regions,) if isinstance(regions, Region) else tuple(regions) if isinstance(regions, Iterable) else ()
    if not found or not all(isinstance(region, Region) for region in found):
        raise ValueError(f"regions of one image {regions!r}: give a Region, or a sequence of at least one")
    return found


def reach(tokens: Tokens, regions: Regions, clamp: bool = True) -> list[float]:
    """Of each token the least reach from any member: scaling scales every member about its own centre."""
    return _least(tokens.reach(region, clamp) for region in members(regions))


def distance(tokens: Tokens, regions: Regions) -> list[float]:
    """Of each token the squared distance to the nearest member's centre."""
    return _least(tokens.distance(region) for region in members(regions))


def covered(tokens: Tokens, regions: Regions) -> list[bool]:
    """Whether each token's cell overlaps a member; never empty.

    The full region is every token, the padding too: it must be the unpruned model.
    """
    if Region.full() in members(regions):
        return [True] * tokens.num_tokens
    return [value < 1 for value in reach(tokens, regions)]


def newlines(tokens: Tokens) -> list[tuple[int, range]]:
    """Where each newline token stands, and the tokens of its row."""
    found: list[tuple[int, range]] = []
    first = 0
    for grid in tokens.grids if isinstance(tokens, TokenMap) else (tokens,):
        if isinstance(grid, TileGrid) and grid.newline:
            ends = range(first + grid.cols, first + grid.num_tokens, grid.cols + 1)
            found += [(end, range(end - grid.cols, end)) for end in ends]
        first += grid.num_tokens
    return found


def finest(tokens: Tokens) -> tuple[TokenGrid, list[int]]:
    """The grid with the most tokens, and where each of its tokens (row-major) stands in the model's order.

    Raises:
        ValueError: these are no grids.
    """
    grids = tokens.grids if isinstance(tokens, TokenMap) else (tokens,)
    best = max(range(len(grids)), key=lambda number: grids[number].num_tokens)
    chosen, first = grids[best], sum(grid.num_tokens for grid in grids[:best])
    if not isinstance(chosen, TokenGrid):
        raise ValueError(f"{type(tokens).__name__} has no grid to draw")
    if not isinstance(chosen, TileGrid):
        return chosen, list(range(first, first + chosen.num_tokens))
    placed = [(place, first + index) for index, place in enumerate(chosen.order()) if place is not None]
    return chosen, [index for _, index in sorted(placed)]


def as_record(tokens: Any) -> dict[str, Any]:
    """A grid or map as plain JSON."""
    return asdict(tokens)


def from_record(record: Mapping[str, Any]) -> TokenGrid | TokenMap:
    """What `as_record` wrote."""
    if "grids" not in record:
        kind = TileGrid if "tile" in record else TokenGrid
        return kind(**record)
    grids = tuple(from_record(grid) for grid in record["grids"])
    assert all(isinstance(grid, TokenGrid) for grid in grids)
    return TokenMap(**{**record, "grids": grids})


def _least(found: Iterable[list[float]]) -> list[float]:
    first, *others = found
    return list(map(min, first, *others)) if others else first
