"""PLC's compressor (paper, 3.3, Eq. 2-5): an image's visual tokens to 64 of its contextual region and 4 of the rest.

Legend: B images, V visual tokens (padded), D width, Q learned queries, R anchor tokens.
"""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, get_args

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from cropl.models.placement import WINDOW, Placement, plain
from cropl.testbed.weights import resolve
from cropl.tiling import Regions, Tokens

Positions = Literal["sincos", "learned", "none"]
CONFIG, WEIGHTS = "compressor.json", "compressor.safetensors"


@dataclass(frozen=True)
class CompressorConfig:
    """What a compressor is made of.

    Attributes:
        width: D, the language model's width (the tokens come from behind the projector).
        queries: learned queries of the contextual region, the paper's N_Qk.
        outside_queries: learned queries of the rest, the paper's N_Qnk.
        anchors: the 8 x 8 anchor tokens X^r and their fusion (Eq. 4); False is the paper's ablation "w/o X^r".
        positions: P(.). ``sincos`` adds fixed two-dimensional encodings to tokens, ``learned`` learned ones of rows and
            columns, and both learned ones to queries; ``none`` adds nothing.
        unit: tokens are counted in this unit: divided by it before Eq. 2-5, multiplied by it after. 1 is the paper's;
            encodings have entries in -1..1, and beside tokens of another size they would say nothing, or everything.
        side: rows and columns of tokens that the queries' encodings are spread over at the start of training.

    Raises:
        ValueError: a number is out of range, or the width is no multiple of 4.
    """

    width: int
    queries: int = 64
    outside_queries: int = 4
    anchors: bool = True
    positions: Positions = "sincos"
    unit: float = 1.0
    side: int = 24

    def __post_init__(self) -> None:
        for name, least in (("width", 4), ("queries", 1), ("outside_queries", 0), ("side", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"compressor {name}={getattr(self, name)}: must be at least {least}")
        if not self.unit > 0:
            raise ValueError(f"compressor unit={self.unit}: must be positive")
        if self.width % 4:
            raise ValueError(f"compressor width={self.width}: must be a multiple of 4 (sine and cosine of two axes)")
        if self.positions not in get_args(Positions):
            raise ValueError(
                f"compressor positions={self.positions!r}: must be one of {', '.join(get_args(Positions))}"
            )


class Compressor(nn.Module):
    """Compresses visual tokens as PLC does; images of any grids and regions in one batch.

    Args:
        config: see :class:`CompressorConfig`.
    """

    def __init__(self, config: CompressorConfig) -> None:
        super().__init__()
        self.config = config
        self.inner = Queries(config.queries, config)
        self.outer = Queries(config.outside_queries, config)
        if config.positions == "learned":
            self.axes = nn.Parameter(_sincos(torch.arange(4.0 * config.side), config.width // 2))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> Compressor:
        """Read what :meth:`save_pretrained` wrote.

        Raises:
            ValueError: the folder holds no compressor, a file is damaged, or the weights do not fit the config.
        """
        place = Path(resolve(str(folder)))
        file = place / CONFIG
        try:
            made = cls(CompressorConfig(**json.loads(file.read_bytes())))
            file = place / WEIGHTS
            made.load_state_dict(load_file(file))
        except FileNotFoundError:
            raise ValueError(
                f"{folder}: no {file.name}: it is no exported PLC (train one with `cropl fit -c testbed/plc`)"
            ) from None
        except (TypeError, ValueError, RuntimeError, SafetensorError) as error:
            raise ValueError(
                f"{file}: the compressor cannot be read: {' '.join(str(error).split())[:280]}; export it again"
            ) from error
        return made.eval()

    def save_pretrained(self, folder: str | Path) -> None:
        """Write config and weights (float32) into a checkpoint's folder."""
        (Path(folder) / CONFIG).write_text(json.dumps(asdict(self.config), indent=2))
        weights = {name: value.detach().float().cpu().contiguous() for name, value in self.state_dict().items()}
        save_file(weights, Path(folder) / WEIGHTS)

    def count(self, tokens: Tokens) -> int:
        """M: tokens that an image of this grid becomes; 68 by default, fewer where the grid has no 8 x 8 anchors."""
        grid = plain(tokens)
        inner = min(WINDOW, grid.rows) * min(WINDOW, grid.cols) if self.config.anchors else self.config.queries
        return inner + self.config.outside_queries

    def flops(self, grid: Tokens) -> int:
        """FLOPs of Eq. 2-4 for one image, 2 per multiply-add: two products of queries and tokens each."""
        width, queries = self.config.width, self.config.queries
        attended = queries * grid.num_tokens + self.config.outside_queries * grid.num_tokens
        if self.config.anchors:
            attended += (self.count(grid) - self.config.outside_queries) * queries
        return 2 * 2 * width * attended

    def forward(self, features: Sequence[Tensor], grids: Sequence[Tokens], regions: Sequence[Regions]) -> list[Tensor]:
        """Visual tokens (V_i, D) of each image to (M_i, D): those of the region first, then those of the rest.

        Args:
            features: behind the projector, row-major.
            grids: where they lie over the image.
            regions: each image's contextual region, or a union of them. Where nothing lies outside, the outer queries
                attend to all.
        """
        for feature_VD, grid in zip(features, map(plain, grids), strict=True):
            if feature_VD.shape != (grid.num_tokens, self.config.width):
                raise ValueError(
                    f"visual tokens of shape {tuple(feature_VD.shape)}, but a {grid.rows} x {grid.cols} grid and a "
                    f"compressor of width {self.config.width}"
                )
        x_BVD = pad_sequence(list(features), batch_first=True) / self.config.unit
        place = Placement.of(grids, regions, x_BVD.device)
        key_BVD = x_BVD + self._encoding(place, x_BVD.dtype)  # P(X)
        inner_BQD = _attend(self.inner.encoded(x_BVD), key_BVD, place.inside_BV)  # Eq. 2
        outer_BQD = _attend(self.outer.encoded(x_BVD), key_BVD, place.outside_BV)  # Eq. 3
        if self.config.anchors:
            inner_BQD = inner_BQD + self.inner.position(x_BVD)  # P(X̂^kv)
            index_BRD = place.anchor_BR[..., None].expand(-1, -1, x_BVD.shape[2])
            fused_BRD = _attend(key_BVD.gather(1, index_BRD), inner_BQD) + x_BVD.gather(1, index_BRD)  # Eq. 4
            real_BM = F.pad(place.real_BR, (0, outer_BQD.shape[1]), value=True)
            whole_BMD = self.config.unit * torch.cat([fused_BRD, outer_BQD], dim=1)  # Eq. 5
            return list(whole_BMD[real_BM].split(place.anchors_and(outer_BQD.shape[1])))
        return list(self.config.unit * torch.cat([inner_BQD, outer_BQD], dim=1))

    def _encoding(self, place: Placement, dtype: torch.dtype) -> Tensor:
        """P(.)'s encodings (B, V, D) of tokens at their rows and columns."""
        axes = (place.row_BV, place.col_BV)
        if self.config.positions == "none":
            return torch.zeros((), device=place.row_BV.device, dtype=dtype)
        if self.config.positions == "sincos":
            exact = torch.promote_types(dtype, torch.float32)
            return torch.cat([_sincos(axis_BV.to(exact), self.config.width // 2) for axis_BV in axes], -1).to(dtype)
        return torch.cat([self.axes[axis_BV.clamp(max=len(self.axes) - 1)] for axis_BV in axes], -1).to(dtype)


class Queries(nn.Module):
    """Learned queries with learned encodings, which start spread evenly over the token grid.

    Args:
        count: Q.
        config: of the compressor.
    """

    def __init__(self, count: int, config: CompressorConfig) -> None:
        super().__init__()
        self.content = nn.Parameter(0.02 * torch.randn(count, config.width))
        self.encoding: nn.Parameter | None = None
        if config.positions != "none":
            columns = max(1, math.isqrt(max(0, count - 1)) + 1)
            rows = max(1, -(-count // columns))
            number = torch.arange(count)
            row = (torch.div(number, columns, rounding_mode="floor") + 0.5) * config.side / rows - 0.5
            col = (number % columns + 0.5) * config.side / columns - 0.5
            half = config.width // 2
            spread = torch.cat([_sincos(row, half), _sincos(col, half)], dim=-1)
            self.encoding = nn.Parameter(spread)

    def position(self, like: Tensor) -> Tensor:
        """The encodings alone, (Q, D), or 0."""
        zero = torch.zeros((), device=like.device, dtype=like.dtype)
        return zero if self.encoding is None else self.encoding.to(like.dtype)

    def encoded(self, like: Tensor) -> Tensor:
        """P(Q) for every image of a batch, (B, Q, D)."""
        return (self.content.to(like.dtype) + self.position(like)).expand(len(like), -1, -1)


def _attend(query_BQD: Tensor, key_BVD: Tensor, allowed_BV: Tensor | None = None) -> Tensor:
    """softmax(Q K^T / sqrt(D)) K: keys and values are one (Eq. 2-4)."""
    mask_B1V = None if allowed_BV is None else allowed_BV[:, None]
    return F.scaled_dot_product_attention(query_BQD, key_BVD, key_BVD, attn_mask=mask_B1V)


def _sincos(position: Tensor, width: int) -> Tensor:
    """Sines and cosines (..., width) of positions, at wavelengths from 2 pi to 10,000 times that."""
    frequency = 10000.0 ** (-torch.arange(width // 2, device=position.device, dtype=position.dtype) / (width // 2))
    angle = position[..., None] * frequency
    return torch.cat([angle.sin(), angle.cos()], dim=-1)
