"""Several questions about one picture in one row: it is encoded once, and every question sees only it.

A row is ``prefix | turn 1 | turn 2 | ...``, where the prefix ends with the visual tokens. Each turn attends to the
prefix and to itself, and its positions continue from the prefix: the logits are those of separate rows, at a fraction
of the cost where the prefix is long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# B rows, S padded length, R rows of position ids (1, or 3 for M-RoPE)

IGNORE = -100


@dataclass
class Turn:
    """One question and its answer as token ids; the loss is on the answer."""

    prompt: list[int]
    answer: list[int]


@dataclass
class Packed:
    """Token ids (B, S), positions (R, B, S), labels (B, S) aligned with the token that *predicts*, mask (B, 1, S, S).

    ``turn_BS`` numbers the turn of each supervised position within its row (-1 elsewhere).
    """

    input_ids_BS: Tensor
    position_ids_RBS: Tensor
    labels_BS: Tensor
    turn_BS: Tensor
    mask_B1SS: Tensor

    def to(self, device: torch.device | str) -> Packed:
        return Packed(**{name: value.to(device) for name, value in vars(self).items()})


def pack(
    prefixes: Sequence[Sequence[int]],
    positions: Sequence[Tensor],
    turns: Sequence[Sequence[Turn]],
    pad_id: int,
) -> Packed:
    """Pack each picture's turns behind its prefix, padding on the right.

    Args:
        prefixes: B lists of token ids, visual placeholders already expanded.
        positions: B tensors (R, len(prefix)): the positions of the prefix; turns continue at their maximum + 1.
        turns: B lists of turns, each with a non-empty answer.
        pad_id: fills the rows; pad positions attend to themselves alone and carry no label.
    """
    lengths = [len(p) + sum(len(t.prompt) + len(t.answer) for t in row) for p, row in zip(prefixes, turns)]
    batch, longest, axes = len(prefixes), max(lengths), positions[0].shape[0]
    input_ids_BS = torch.full((batch, longest), pad_id)
    position_ids_RBS = torch.zeros(axes, batch, longest, dtype=torch.long)
    labels_BS = torch.full((batch, longest), IGNORE)
    turn_BS = torch.full((batch, longest), -1)
    segment_BS = torch.full((batch, longest), -1)  # 0 the prefix, 1.. the turns, -1 padding
    for b, (prefix, row) in enumerate(zip(prefixes, turns)):
        end = len(prefix)
        input_ids_BS[b, :end] = torch.as_tensor(list(prefix))
        position_ids_RBS[:, b, :end] = positions[b]
        segment_BS[b, :end] = 0
        first = int(positions[b].max()) + 1
        for number, turn in enumerate(row):
            ids = turn.prompt + turn.answer
            start, end = end, end + len(ids)
            input_ids_BS[b, start:end] = torch.as_tensor(ids)
            position_ids_RBS[:, b, start:end] = torch.arange(first, first + len(ids))
            segment_BS[b, start:end] = number + 1
            predicting = slice(end - len(turn.answer) - 1, end - 1)
            labels_BS[b, predicting] = torch.as_tensor(turn.answer)
            turn_BS[b, predicting] = number
    return Packed(input_ids_BS, position_ids_RBS, labels_BS, turn_BS, _mask(segment_BS))


def _mask(segment_BS: Tensor) -> Tensor:
    """True where a query may look: causal, at the prefix or at its own turn; padding looks at itself alone."""
    length = segment_BS.shape[1]
    causal_SS = torch.ones(length, length, dtype=torch.bool).tril()
    query_BS1, key_B1S = segment_BS[:, :, None], segment_BS[:, None, :]
    seen_BSS = (key_B1S == query_BS1) | (key_B1S == 0)
    real_BSS = (query_BS1 >= 0) & (key_B1S >= 0)
    itself_SS = torch.eye(length, dtype=torch.bool)
    return ((seen_BSS & real_BSS & causal_SS) | itself_SS)[:, None]
