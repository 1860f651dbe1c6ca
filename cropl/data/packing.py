"""Several documents in one row, none of which sees another; a picture's questions see it, and not one another.

A document is ``prefix | turn 1 | turn 2 | ...``, where the prefix ends with the visual tokens, or is empty in a text
without a picture. Each turn attends to the prefix and to itself, and its positions continue from the prefix, whose own
start anew in each document: the logits are those of separate rows, at a fraction of the cost where the prefix is long.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from cropl.prompt import Span

# B rows, S padded length, R rows of position ids (1, or 3 for M-RoPE)

IGNORE = -100


@dataclass
class Turn:
    """A question and its answer, or a whole conversation, as token ids.

    Attributes:
        ids: the tokens.
        labels: each token that is trained on, ``IGNORE`` for others, among them the first.
        question: where the first question's tokens start and end: what may be cut from a turn that is too long.
    """

    ids: list[int]
    labels: list[int]
    question: tuple[int, int] = (0, 0)

    @classmethod
    def labelled(cls, ids: list[int], offsets: Sequence[Span], answers: Sequence[Span], question: Span) -> Turn:
        """A turn of tokens that lie at ``offsets`` in a text: what overlaps an answer is trained on."""
        inside = bytearray(max(end for _, end in answers))  # 1 for each character of an answer
        for start, end in answers:
            inside[start:end] = b"\1" * (end - start)
        labels = [token if any(inside[start:end]) else IGNORE for token, (start, end) in zip(ids, offsets)]
        asked = [i for i, (start, end) in enumerate(offsets) if start < min(end, question[1]) and question[0] < end]
        return cls(ids, labels, (asked[0], asked[-1] + 1) if asked else (0, 0))


@dataclass
class Document:
    """What is seen together: a prefix with its positions (R, len(prefix)), and turns behind it."""

    prefix: list[int]
    positions: Tensor
    turns: list[Turn]

    def __len__(self) -> int:
        return len(self.prefix) + sum(len(turn.ids) for turn in self.turns)


@dataclass
class Packed:
    """Token ids (B, S), positions (R, B, S), labels (B, S) aligned with the token that *predicts*, mask (B, 1, S, S).

    ``turn_BS`` numbers the turn of each supervised position within its row (-1 elsewhere), through all documents.
    ``length_B`` counts each row's tokens without padding.
    """

    input_ids_BS: Tensor
    position_ids_RBS: Tensor
    labels_BS: Tensor
    turn_BS: Tensor
    mask_B1SS: Tensor
    length_B: Tensor

    @property
    def padding(self) -> Tensor:
        """Share of the positions that are padding."""
        return 1 - self.length_B.sum() / self.input_ids_BS.numel()

    def to(self, device: torch.device | str) -> Packed:
        return Packed(**{name: value.to(device) for name, value in vars(self).items()})


def rows_of(lengths: Sequence[int], capacity: int | None = None) -> list[list[int]]:
    """Which documents share a row: each, from the longest on, goes into the first row that has room for it.

    Args:
        lengths: tokens of each document.
        capacity: tokens of a row; by default those of the longest document.

    Raises:
        ValueError: a document is longer than a row.
    """
    capacity = max(lengths) if capacity is None else capacity
    if max(lengths) > capacity:
        raise ValueError(f"a document of {max(lengths)} tokens does not fit into rows of {capacity}: shorten it first")
    rows: list[list[int]] = []
    room: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        row = next((number for number, free in enumerate(room) if free >= lengths[i]), len(rows))
        if row == len(rows):
            rows.append([])
            room.append(capacity)
        rows[row].append(i)
        room[row] -= lengths[i]
    return sorted(sorted(row) for row in rows)


def fit(turn: Turn, max_tokens: int) -> Turn:
    """A turn of at most ``max_tokens`` tokens.

    Whole answers at its end go first, with their questions; if the first alone is too long, its question is cut from
    the left, and only then the answer from the right. A turn may end up without labels, and then trains nothing.
    """
    room = max(0, max_tokens)
    if len(turn.ids) <= room:
        return turn
    following = [*turn.labels[1:], IGNORE]
    ends = [i + 1 for i, label in enumerate(turn.labels) if label != IGNORE and following[i] == IGNORE]
    end = max((end for end in ends if end <= room), default=min(ends, default=0))
    first, last = turn.question
    cut = min(max(0, end - room), last - first)
    kept = [*range(first), *range(first + cut, end)][:room]
    return Turn([turn.ids[i] for i in kept], [turn.labels[i] for i in kept], (first, last - cut))


def pack(rows: Sequence[Sequence[Document]], pad_id: int) -> Packed:
    """Pack documents into rows, padding on the right.

    Args:
        rows: the documents of each of B rows.
        pad_id: fills the rows; pad positions attend to themselves alone and carry no label.

    Raises:
        ValueError: the first token of a turn has a label: it follows the prefix, as other turns do.
    """
    length_B = torch.tensor([sum(map(len, row)) for row in rows])
    shape = (len(rows), max(1, int(length_B.max())))
    input_ids_BS = torch.full(shape, pad_id)
    position_ids_RBS = torch.zeros(len(rows[0][0].positions), *shape, dtype=torch.long)
    labels_BS, turn_BS = torch.full(shape, IGNORE), torch.full(shape, -1)
    document_BS, part_BS = torch.full(shape, -1), torch.full(shape, -1)  # part 0 is the prefix, 1.. the row's turns
    for b, row in enumerate(rows):
        end = number = 0
        for d, document in enumerate(row):
            start, end = end, end + len(document.prefix)
            input_ids_BS[b, start:end] = torch.tensor(document.prefix, dtype=torch.long)
            position_ids_RBS[:, b, start:end] = document.positions
            document_BS[b, start:end], part_BS[b, start:end] = d, 0
            first = int(document.positions.max()) + 1 if document.prefix else 0
            for turn in document.turns:
                if turn.labels[:1] not in ([], [IGNORE]):
                    raise ValueError("the first token of a turn has a label, and nothing in the turn to predict it")
                start, end = end, end + len(turn.ids)
                input_ids_BS[b, start:end] = torch.tensor(turn.ids, dtype=torch.long)
                position_ids_RBS[:, b, start:end] = torch.arange(first, first + len(turn.ids))
                document_BS[b, start:end], part_BS[b, start:end] = d, number + 1
                labels = torch.tensor(turn.labels[1:], dtype=torch.long)
                labels_BS[b, start : start + len(labels)] = labels
                turn_BS[b, start : start + len(labels)] = torch.where(labels == IGNORE, -1, number)
                number += 1
    return Packed(input_ids_BS, position_ids_RBS, labels_BS, turn_BS, _mask(document_BS, part_BS), length_B)


def _mask(document_BS: Tensor, part_BS: Tensor) -> Tensor:
    """True where a query may look: causal, at its document's prefix or its own turn; padding looks at itself alone."""
    length = part_BS.shape[1]
    causal_SS = torch.ones(length, length, dtype=torch.bool).tril()
    near_BSS = (part_BS[:, None, :] == 0) | (part_BS[:, None, :] == part_BS[:, :, None])
    together_BSS = (document_BS[:, None, :] == document_BS[:, :, None]) & (document_BS >= 0)[:, None, :]
    itself_SS = torch.eye(length, dtype=torch.bool)
    return ((near_BSS & together_BSS & causal_SS) | itself_SS)[:, None]
