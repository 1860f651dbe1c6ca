"""What methods that rank visual tokens share: how many stay, and which are the best.

Shapes: B rows, S positions.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

Tokens = int | float


def check_tokens(tokens: Tokens) -> Tokens:
    """`tokens` if it is a count of at least 1, or a share in (0, 1] of an image's own tokens."""
    is_count = isinstance(tokens, int) and not isinstance(tokens, bool)
    if not (is_count and tokens >= 1) and not (isinstance(tokens, float) and 0 < tokens <= 1):
        raise ValueError(f"tokens={tokens!r}: must be a count >= 1 or a share in (0, 1]")
    return tokens


def wanted(tokens: Tokens, total: int) -> int:
    """How many of a row's `total` visual tokens stay: the count, or the share (rounded, at least one); 0 of none.

    Raises:
        ValueError: more than there are.
    """
    if not total:
        return 0
    count = max(1, math.floor(tokens * total + 0.5)) if isinstance(tokens, float) else tokens
    if count > total:
        raise ValueError(f"tokens={tokens}: more than the {total} visual tokens of a row")
    return count


def best(score_BS: Tensor, candidate_BS: Tensor, counts: Sequence[int]) -> Tensor:
    """Bool BS: in each row the `counts[row]` candidates of the highest score; of equal ones, the earlier.

    A count above a row's candidates keeps them all.
    """
    candidate_BS = candidate_BS.to(score_BS.device)
    order_BS = score_BS.masked_fill(~candidate_BS, float("-inf")).argsort(dim=1, descending=True, stable=True)
    rank_S = torch.arange(score_BS.shape[1], device=score_BS.device)
    chosen_BS = rank_S < torch.tensor(counts, device=score_BS.device)[:, None]
    return torch.zeros_like(candidate_BS).scatter(1, order_BS, chosen_BS) & candidate_BS
