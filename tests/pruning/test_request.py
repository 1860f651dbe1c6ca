"""What one image keeps: the region's own tokens, or exactly a budget."""

from __future__ import annotations

import pytest
import torch

from cropl.budget import per_image
from cropl.grid import TokenGrid
from cropl.pruning import keep_mask, region_mask
from tests.reference.tiny import FULL, SMALL

GRID = TokenGrid.padded_square(24, 120, 90)


def test_without_a_budget_the_region_decides() -> None:
    assert torch.equal(keep_mask(SMALL, GRID), region_mask(SMALL, GRID))
    assert keep_mask(FULL, GRID).all()


@pytest.mark.parametrize(("budget", "kept"), [(20, 20), (576, 576), (0.25, 144), (1.0, 576)])
def test_a_budget_is_exact(budget, kept) -> None:
    mask_V = keep_mask(SMALL, GRID, budget)
    assert mask_V.sum() == kept
    assert torch.equal(mask_V, per_image(SMALL, GRID, budget))


@pytest.mark.parametrize("budget", [0, 577])
def test_a_budget_that_cannot_be(budget) -> None:
    with pytest.raises(ValueError, match="from 1 to 576"):
        keep_mask(SMALL, GRID, budget)
