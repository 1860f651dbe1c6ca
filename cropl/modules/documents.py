"""A training batch on its way to packed rows: which document shows which picture, and whose token is whose.

B rows, T supervised tokens, V visual tokens, D width.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from cropl.data.packing import Packed
from cropl.models.packed import places


@dataclass
class Rows:
    """A batch as packed rows.

    Attributes:
        packed: the rows.
        features: visual tokens of their pictures, row by row.
        asked: each row's questions, as ``packed.turn_BS`` numbers them.
        evidence: of each question, bool (2, V) among its visual tokens, or None.
        idle: visual tokens of pictures that no document shows.
        cut: share of the questions that were too long.
    """

    packed: Packed
    features: list[Tensor]
    asked: list[list[dict[str, Any]]]
    evidence: list[list[Tensor | None]]
    idle: list[Tensor]
    cut: float


@dataclass
class Shown:
    """A document before it is packed.

    Attributes:
        asked: its questions.
        evidence: of each, bool (2, V) among the visual tokens, or None.
        tokens_VD: its visual tokens.
        grid: (rows, columns) of the grid that gives them positions; None without a picture.
        cell_V: the place of each token on this grid, row-major.
    """

    asked: list[dict[str, Any]]
    evidence: list[Tensor | None]
    tokens_VD: Tensor
    grid: tuple[int, int] | None
    cell_V: Tensor

    @classmethod
    def text(cls, asked: list[dict[str, Any]]) -> Shown:
        """A document without a picture."""
        return cls(asked, [None] * len(asked), torch.empty(0, 0), None, torch.arange(0))


def pictures_of(batch: dict[str, Any]) -> list[int | None]:
    """The number of each document's picture, None without one."""
    return list(batch.get("images", range(len(batch["questions"]))))


def unseen(batch: dict[str, Any]) -> list[int]:
    """The pictures that no document shows: one that stands for none, so that the tower runs in every step."""
    return sorted(set(range(len(batch["pixels"]))) - set(pictures_of(batch)))


def origins(rows: Rows) -> tuple[Tensor, Tensor, list[str]]:
    """Number of each supervised token's sample and of its source (-1: none), each (T,), and the sources' names."""
    row_T, turn_T = places(rows.packed)
    names = sorted({row["source"] for asked in rows.asked for row in asked if row.get("source")})
    table_BN = torch.full((len(rows.asked), max(map(len, rows.asked))), -1)
    for b, asked in enumerate(rows.asked):
        for n, row in enumerate(asked):
            table_BN[b, n] = names.index(row["source"]) if row.get("source") else -1
    return row_T * table_BN.shape[1] + turn_T, table_BN.to(row_T.device)[row_T, turn_T], names


def strided(grid: tuple[int, int], stride: int) -> Tensor:
    """Indices of every ``stride``-th row and column, at a random phase."""
    rows, columns = grid
    row = torch.arange(int(torch.randint(min(stride, rows), ())), rows, stride)
    column = torch.arange(int(torch.randint(min(stride, columns), ())), columns, stride)
    return (row[:, None] * columns + column[None]).flatten()
