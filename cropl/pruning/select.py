"""What methods that rank visual tokens share: how many stay, and which are the best.

Shapes: B rows, S positions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from cropl.budget import InfeasibleBudget

Amount = int | float
"""Of tokens: a count, or a share of what an image has."""


def check_tokens(tokens: Amount) -> Amount:
    """`tokens` if it is a count of at least 1, or a share in (0, 1] of an image's own tokens."""
    is_count = isinstance(tokens, int) and not isinstance(tokens, bool)
    if not (is_count and tokens >= 1) and not (isinstance(tokens, float) and 0 < tokens <= 1):
        raise ValueError(f"tokens={tokens!r}: must be a count >= 1 or a share in (0, 1]")
    return tokens


def wanted(tokens: Amount, total: int) -> int:
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


def rating_flops(config: Any, tokens: int, raters: int = 1, keys: bool = False) -> int:
    """FLOPs of the attention of `raters` queries to `tokens` keys, their projection included (`LayerInput.mean`).

    `keys` counts the projection of keys as well: of a layer that has run, the cache has them.
    """
    width, heads = config.hidden_size, config.num_attention_heads
    head_width = getattr(config, "head_dim", None) or width // heads
    projected = tokens * width * config.num_key_value_heads * head_width if keys else 0
    return 2 * (projected + raters * heads * head_width * (width + tokens))


def scaled_layer(layer: int, num_layers: int) -> int:
    """A decoder layer that was published for 32, for a model of `num_layers`: in proportion, at least 1."""
    return max(1, round(layer * num_layers / 32))


def scaled_layers(layers: Sequence[int], num_layers: int) -> tuple[int, ...]:
    """Decoder layers that were published for 32, for a model of `num_layers`: in proportion, at least 1, ascending.

    Raises:
        InfeasibleBudget: the model has too few layers for so many stages.
    """
    scaled: list[int] = []
    for layer in layers:
        scaled.append(max(scaled_layer(layer, num_layers), scaled[-1] + 1 if scaled else 0))
    if scaled[-1] >= num_layers:
        raise InfeasibleBudget(f"{len(layers)} stages do not fit into {num_layers} decoder layers")
    return tuple(scaled)


def average(stages: Sequence[float], layers: Sequence[int], total: float, num_layers: int) -> float:
    """Mean tokens per decoder layer: `total` up to the first of `layers`, then `stages[0]` up to the second, ..."""
    ends = [*layers[1:], num_layers]
    pruned = sum(kept * (end - start) for kept, start, end in zip(stages, layers, ends, strict=True))
    return (layers[0] * total + pruned) / num_layers


def bisected(tokens: Callable[[float], float], target: float) -> float:
    """The factor in 0..1 at which the rising function `tokens` meets `target` within one token.

    Raises:
        InfeasibleBudget: it never does.
    """
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if tokens(middle) < target else (low, middle)
    if abs(tokens(high) - target) > 1:
        raise InfeasibleBudget(
            f"{target:g} tokens cannot be met: this method's layers take {tokens(0.0):g} to {tokens(1.0):g} on average"
        )
    return high


def spread(candidate_BS: Tensor, counts: Sequence[int]) -> Tensor:
    """Bool BS: `counts[row]` evenly spaced ones of each row's candidates, or all where there are fewer."""
    index_BS = candidate_BS.long().cumsum(1) - 1
    total_B1 = candidate_BS.sum(1, keepdim=True).clamp(min=1)
    count_B1 = torch.tensor(counts, device=index_BS.device)[:, None].minimum(total_B1)
    # n of V tokens are those in which one of n intervals of V / n begins: index * n // V steps up there.
    return candidate_BS & (index_BS * count_B1 // total_B1 != (index_BS - 1) * count_B1 // total_B1)


def best(score_BS: Tensor, candidate_BS: Tensor, counts: Sequence[int]) -> Tensor:
    """Bool BS: in each row the `counts[row]` candidates of the highest score; of equal ones, the earlier.

    A count above a row's candidates keeps them all.
    """
    candidate_BS = candidate_BS.to(score_BS.device)
    order_BS = score_BS.masked_fill(~candidate_BS, float("-inf")).argsort(dim=1, descending=True, stable=True)
    rank_S = torch.arange(score_BS.shape[1], device=score_BS.device)
    chosen_BS = rank_S < torch.tensor(counts, device=score_BS.device)[:, None]
    return torch.zeros_like(candidate_BS).scatter(1, order_BS, chosen_BS) & candidate_BS
