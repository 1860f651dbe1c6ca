"""A training batch on its way to packed rows: which document shows which picture, and whose token is whose.

B rows, T supervised tokens, V visual tokens, D width.
"""

from __future__ import annotations

from collections.abc import Mapping
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
class Picture:
    """What the language model gets of a picture.

    Attributes:
        tokens_VD: its visual tokens.
        grid: (rows, columns) of the grid that gives them positions.
        cell_V: the place of each token on this grid, row-major.
    """

    tokens_VD: Tensor
    grid: tuple[int, int]
    cell_V: Tensor

    @classmethod
    def in_a_row(cls, tokens_MD: Tensor) -> Picture:
        """Tokens at consecutive positions."""
        return cls(tokens_MD, (1, len(tokens_MD)), torch.arange(len(tokens_MD)))


@dataclass
class Shown:
    """A document before it is packed.

    Attributes:
        asked: its questions.
        picture: None without one.
        evidence: of each question, bool (2, V) among the visual tokens, or None.
    """

    asked: list[dict[str, Any]]
    picture: Picture | None
    evidence: list[Tensor | None]

    @classmethod
    def of(cls, asked: list[dict[str, Any]], picture: Picture | None = None, evidence: bool = False) -> Shown:
        """A document with this picture, and with the evidence that its questions tell of the picture's grid."""
        if picture is None or not evidence:
            return cls(asked, picture, [None] * len(asked))
        return cls(asked, picture, [r["evidence"][:, picture.cell_V] if "evidence" in r else None for r in asked])


def check_without_grid(options: Mapping[str, Any], method: str) -> None:
    """ValueError for options of a module that need the visual tokens on their grid, which `method` leaves."""
    for key, off in (("stride", 1), ("evidence_weight", 0)):
        if options.get(key, off) != off:
            raise ValueError(f"{key} {options[key]}: is of all visual tokens on a grid, which {method} leaves")


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
