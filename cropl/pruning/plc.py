"""PLC, pre-LLM compression (CROP, section 3.3): 64 tokens of the contextual region and 4 of the rest enter the LLM."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from torch import Tensor

from cropl.models.compressor import CONFIG, WEIGHTS, Compressor
from cropl.pruning.base import PreLLM
from cropl.tiling import Regions, Tokens


class PLC(PreLLM):
    """Compresses visual tokens with a trained compressor. The model must be the one that was trained with it.

    Args:
        compressor: a loaded one, or the folder of an exported PLC.
    """

    def __init__(self, compressor: Compressor | str | Path) -> None:
        self.compressor = compressor if isinstance(compressor, Compressor) else _current(Path(compressor))

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> PLC:
        """The compressor in the folder that `cropl fit -c compressor/...` exports; `load_vlm` reads the model there.

        Raises:
            ValueError: there is none, or it is damaged.
        """
        return cls(Compressor.from_pretrained(folder))

    @property
    def name(self) -> str:
        return "plc"

    def count(self, grid: Tokens) -> int:
        return self.compressor.count(grid)

    def flops(self, grid: Tokens, config: Any) -> int:
        return self.compressor.flops(grid)

    def compress(self, features: Sequence[Tensor], grids: Sequence[Tokens], regions: Sequence[Regions]) -> list[Tensor]:
        return self.compressor.to(features[0].device)(features, grids, regions)


def _current(folder: Path) -> Compressor:
    """The compressor in a folder: loaded once, as a study asks for it in every batch, and anew when it was replaced."""
    stats = [path.stat() for path in (folder / CONFIG, folder / WEIGHTS) if path.exists()]
    return _loaded(folder, tuple((stat.st_mtime_ns, stat.st_size) for stat in stats))


@lru_cache(maxsize=8)
def _loaded(folder: Path, version: tuple[tuple[int, int], ...]) -> Compressor:
    return Compressor.from_pretrained(folder)
