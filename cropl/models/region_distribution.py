"""How probable a localizer holds each of the 1,296 rectangles of the grid, and the regions that can be read off that.

The expected recall of a rectangle is a sum over its blocks: a true region G gives each of its blocks 1 / |G| of the
recall, so a block is worth the expectation of that, and all blocks together are worth 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from cropl.grid import GRID, Region

# B questions; X, Y, U, V the coordinates x_min, y_min, x_max, y_max; I, J blocks across and down; G coordinates of an
# axis; R rectangles, A areas that a rectangle can have

READOUT_KEY = "region_readout"
"""In a checkpoint's config: how its regions are read."""
COVERAGE_KEY = "region_coverage"
"""The same in older checkpoints, which knew `coverage` alone."""

_LEVELS = {"greedy": None, "most_probable": None, "coverage": "0 < level < 1", "expected_recall": "0 <= level <= 1"}

_X, _Y, _U, _V = torch.meshgrid(*[torch.arange(GRID)] * 4, indexing="ij")
_VALID_XYUV = (_X <= _U) & (_Y <= _V)
_AREA_XYUV = torch.where(_VALID_XYUV, (_U - _X + 1) * (_V - _Y + 1), 1)
_RECTANGLE_R4 = _VALID_XYUV.nonzero()
_AREA_R = _AREA_XYUV[_VALID_XYUV]
_BLOCK_G = torch.arange(GRID)
_INSIDE_IXU = ((_BLOCK_G[:, None, None] >= _BLOCK_G[:, None]) & (_BLOCK_G[:, None, None] <= _BLOCK_G)).double()
_BELOW_ONE = math.nextafter(1.0, 0.0)


@dataclass(frozen=True)
class Readout:
    """How one region is read off what a localizer holds probable, written `NAME` or `NAME:LEVEL`.

    - `greedy`: the most probable coordinate, one after the other (the paper).
    - `coverage:LEVEL`: one after the other, each side as far in as it can be while the model gives LEVEL to the true
      side not lying beyond it.
    - `most_probable`: the rectangle with the highest joint probability.
    - `expected_recall:LEVEL`: the smallest rectangle whose expected recall is at least LEVEL; of several the one that
      expects most. Level 1 is the whole image.

    Raises:
        ValueError: no such name, or a level that is missing, out of its range, or has no use.
    """

    name: str = "greedy"
    level: float | None = None

    def __post_init__(self) -> None:
        if self.name not in _LEVELS:
            raise ValueError(f"readout {self.name!r}: choose {', '.join(_LEVELS)}")
        bounds = _LEVELS[self.name]
        if bounds is None and self.level is not None:
            raise ValueError(f"readout '{self.name}:{self.level}': {self.name} has no level")
        if bounds is None:
            return
        if self.level is None or isinstance(self.level, bool) or not isinstance(self.level, int | float):
            raise ValueError(f"readout {self.name!r} needs a level ({bounds}), such as '{self.name}:0.9'")
        if not 0 <= self.level <= 1 or (self.name == "coverage" and self.level in (0, 1)):
            raise ValueError(f"readout '{self.name}:{self.level}': give {bounds}")

    @classmethod
    def parse(cls, text: str | Readout) -> Readout:
        """Read what `str` writes."""
        if isinstance(text, Readout):
            return text
        if not isinstance(text, str):
            raise ValueError(f"readout {text!r}: give text such as 'greedy' or 'expected_recall:0.9'")
        name, colon, level = text.partition(":")
        try:
            return cls(name, float(level) if colon else None)
        except ValueError as error:
            if "readout" in str(error):
                raise
            raise ValueError(f"readout {text!r}: the level {level!r} is no number") from None

    @classmethod
    def stored(cls, config: Any) -> Readout:
        """The one that a checkpoint's config asks for; greedy where it says nothing.

        Raises:
            ValueError: what it asks for is none.
        """
        if (text := getattr(config, READOUT_KEY, None)) is not None:
            return cls.parse(text)
        coverage = getattr(config, COVERAGE_KEY, None) or 0.0
        if isinstance(coverage, bool) or not isinstance(coverage, int | float) or not 0 <= coverage < 1:
            raise ValueError(
                f"{COVERAGE_KEY} in a localizer's config.json is {coverage!r}: give a probability from 0 (the most "
                f"probable coordinates) to below 1"
            )
        return cls("coverage", float(coverage)) if coverage else cls()

    def store(self, config: Any) -> None:
        """Make a checkpoint's config ask for this one."""
        setattr(config, READOUT_KEY, str(self))
        if hasattr(config, COVERAGE_KEY):
            delattr(config, COVERAGE_KEY)

    @property
    def stepwise(self) -> bool:
        """Whether it is read one coordinate at a time, without the distribution."""
        return self.name in ("greedy", "coverage")

    @property
    def side_coverage(self) -> float:
        """The `coverage` of :func:`coordinates` for a stepwise one."""
        return self.level or 0.0

    def __str__(self) -> str:
        return self.name if self.level is None else f"{self.name}:{self.level}"


@dataclass(frozen=True)
class RegionDistribution:
    """Joint probabilities of the rectangles, for B questions.

    Attributes:
        p_BXYUV: float64 (B, 8, 8, 8, 8) by x_min, y_min, x_max, y_max; 0 where a minimum exceeds its maximum.
    """

    p_BXYUV: Tensor

    @classmethod
    def from_logits(cls, x_BX: Tensor, y_BXY: Tensor, u_BXYU: Tensor, v_BXYUV: Tensor) -> RegionDistribution:
        """From the logits of each coordinate, given those before it; what no region has may have any logit."""
        valid_XU = _VALID_XYUV[:, 0, :, -1].to(x_BX.device)
        u_BXYU = u_BXYU.double().masked_fill(~valid_XU[None, :, None, :], -math.inf)
        v_BXYUV = v_BXYUV.double().masked_fill(~valid_XU[None, None, :, None, :], -math.inf)
        log_p = x_BX.double().log_softmax(1)[:, :, None, None, None] + y_BXY.double().log_softmax(2)[..., None, None]
        log_p = log_p + u_BXYU.log_softmax(3)[..., None] + v_BXYUV.log_softmax(4)
        return cls(log_p.exp().cpu().masked_fill(~_VALID_XYUV, 0.0))

    def __len__(self) -> int:
        return len(self.p_BXYUV)

    def __getitem__(self, index: slice) -> RegionDistribution:
        return RegionDistribution(self.p_BXYUV[index])

    def probability(self, regions: Sequence[Region]) -> list[float]:
        """Of one region per question."""
        return [float(p[region.as_tuple()]) for p, region in zip(self.p_BXYUV, regions, strict=True)]

    def read(self, readout: Readout | str) -> list[Region]:
        """One region per question."""
        readout = Readout.parse(readout)
        if readout.stepwise:
            return self._stepwise(readout.side_coverage)
        if readout.name == "most_probable":
            best_B = self.p_BXYUV[:, _VALID_XYUV].argmax(1)
            return _regions(best_B)
        assert readout.level is not None
        recall_BA, rectangle_BA = self._best_of_areas
        first_B1 = (recall_BA >= readout.level).int().argmax(1, keepdim=True)
        return _regions(rectangle_BA.gather(1, first_B1)[:, 0])

    def _stepwise(self, coverage: float) -> list[Region]:
        left, chosen = self.p_BXYUV, []
        for step in range(4):
            log_p_BG = left.reshape(len(left), GRID, -1).sum(2).log()
            chosen.append(coordinates(log_p_BG, step, coverage))
            left = left[torch.arange(len(left)), chosen[-1]]
        return [Region(*row) for row in torch.stack(chosen, dim=1).tolist()]

    @cached_property
    def worth_BIJ(self) -> Tensor:
        """What each block (across, down) adds to the expected recall of a rectangle that holds it; the sum is 1."""
        spread_BXYUV = self.p_BXYUV / _AREA_XYUV
        return torch.einsum("ixu,jyv,bxyuv->bij", _INSIDE_IXU, _INSIDE_IXU, spread_BXYUV)

    @cached_property
    def expected_recall_BXYUV(self) -> Tensor:
        """Expected block recall |GT and R| / |GT| of each rectangle R; 0 where a minimum exceeds its maximum."""
        return torch.einsum("ixu,jyv,bij->bxyuv", _INSIDE_IXU, _INSIDE_IXU, self.worth_BIJ)

    @cached_property
    def _best_of_areas(self) -> tuple[Tensor, Tensor]:
        """Expected recall (B, A) and number (B, A) of the rectangle that expects most, for each area, rising."""
        recall_BR = self.expected_recall_BXYUV[:, _VALID_XYUV]
        recalls, rectangles = [], []
        for area in _AREA_R.unique().tolist():
            mine_N = torch.nonzero(area == _AREA_R)[:, 0]
            best = recall_BR[:, mine_N].max(1)
            recalls.append(best.values.clamp(max=_BELOW_ONE))  # nothing else is impossible, whatever rounding says
            rectangles.append(mine_N[best.indices])
        recalls[-1] = torch.ones_like(recalls[-1])  # the whole image
        return torch.stack(recalls, dim=1), torch.stack(rectangles, dim=1)

    def ladder(self) -> list[list[tuple[float, Region]]]:
        """Per question all regions that `expected_recall` can read, rising, each with the highest level that reads it.

        The last one is the whole image, with level 1.
        """
        found = []
        for recall_A, rectangle_A in zip(*(part.tolist() for part in self._best_of_areas)):
            rungs: list[tuple[float, Region]] = []
            for recall, rectangle in zip(recall_A, rectangle_A):
                if not rungs or recall > rungs[-1][0]:
                    rungs.append((recall, Region(*_RECTANGLE_R4[rectangle].tolist())))
            found.append(rungs)
        return found


def coordinates(scores_BG: Tensor, step: int, coverage: float = 0.0) -> Tensor:
    """The coordinate (B,) of one step of decoding: x_min, y_min, x_max or y_max, where ``step`` is 0 to 3.

    Args:
        scores_BG: logits of the coordinates 0..7, -inf where one is not allowed.
        step: which side.
        coverage: 0 takes the most probable coordinate. Otherwise a side is put as far in as the model allows while the
            probability that the true side does not lie beyond it is at least ``coverage``.
    """
    if not coverage:
        return scores_BG.argmax(1)
    p_BG = scores_BG.double().softmax(1)
    if step < 2:  # the innermost minimum: the probability of lesser ones stays within 1 - coverage
        return GRID - 1 - _count_short(p_BG.flip(1), coverage)
    return _count_short(p_BG, coverage)


def _count_short(p_BG: Tensor, coverage: float) -> Tensor:
    """How many coordinates (B,), taken in order, together stay below ``coverage``; at most all but one."""
    return (p_BG.cumsum(1) < coverage).sum(1).clamp(max=GRID - 1)


def _regions(rectangle_B: Tensor) -> list[Region]:
    return [Region(*row) for row in _RECTANGLE_R4[rectangle_B].tolist()]
