"""What was found out, as the page takes it: numbers, and places in thousandths of the picture."""

from __future__ import annotations

from typing import Any

from cropl.evaluation.overlay import Cells, kept_outline, kept_runs
from cropl.grid import Region
from cropl.integrations.demo.locating import Located
from cropl.integrations.demo.measuring import Measured
from cropl.tiling import Tokens

SIDE = 1000


def tell_located(located: Located) -> dict[str, Any]:
    """The region and the probability of each block."""
    region = located.region
    return {
        "region": None if region is None else list(region.as_tuple()),
        "source": located.source,
        "seconds": located.seconds,
        "heat": None if located.heat is None else [[round(p, 4) for p in row] for row in located.heat],
        "message": located.message,
    }


def tell_measured(
    measured: Measured, grid: Tokens, layer: int | None, region: Region | None, localizing: float | None = None
) -> dict[str, Any]:
    """An answer, what it took, and the tokens that were left.

    Args:
        measured: the answer.
        grid: of the picture's tokens.
        layer: K.
        region: that the method took.
        localizing: seconds that a localizer took to tell it; None where none did.
    """
    visual, costs = measured.visual, measured.costs
    return {
        "answer": measured.text,
        "layer": layer,
        "region": None if region is None else list(region.as_tuple()),
        "kept": visual[-1],
        "total": grid.num_tokens,
        "layer_average": sum(visual) / len(visual),
        "prefill_flops": costs.prefill_flops,
        "with_vision": costs.with_vision,
        "with_localizer": costs.with_localizer,
        "kv_bytes": costs.kv_bytes,
        "prefill_seconds": measured.prefill_seconds,
        "seconds": measured.seconds,
        "localized_seconds": None if localizing is None else measured.seconds + localizing,
        "mask": None if measured.keep is None else _mask(measured.keep, grid),
    }


def _mask(keep: list[bool], grid: Tokens) -> dict[str, list[list[float]]]:
    """Rectangles `(x, y, width, height)` of kept tokens, and the lines `(x0, y0, x1, y1)` around them."""
    cells = Cells.of(grid, keep, SIDE, SIDE)

    def place(col: float, row: float) -> list[float]:
        return [round(cells.left + col * cells.width, 2), round(cells.top + row * cells.height, 2)]

    runs = kept_runs(cells.keep, cells.grid)
    outline = kept_outline(cells.keep, cells.grid)
    return {
        "kept": [[*place(c, r), round(w * cells.width, 2), round(h * cells.height, 2)] for r, c, h, w in runs],
        "outline": [[*place(x0, y0), *place(x1, y1)] for x0, y0, x1, y1 in outline],
    }
