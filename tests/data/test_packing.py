"""Rows of documents: who shares a row, who sees whom, and what is cut from a conversation that is too long."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cropl.data.packing import IGNORE, Document, Turn, fit, pack, rows_of

lengths = st.lists(st.integers(0, 30), min_size=1, max_size=20)


@given(lengths, st.integers(0, 20))
def test_rows_hold_every_document_once_and_no_more_than_fits(lengths, spare):
    rows = rows_of(lengths, max(lengths) + spare)
    assert sorted(i for row in rows for i in row) == list(range(len(lengths)))
    assert all(sum(lengths[i] for i in row) <= max(lengths) + spare for row in rows)
    assert rows == rows_of(lengths, max(lengths) + spare)
    emptiest = sorted(sum(lengths[i] for i in row) for row in rows)[:2]
    assert len(emptiest) < 2 or sum(emptiest) > max(lengths) + spare  # no two rows would fit into one


def test_the_longest_document_goes_first():
    assert rows_of([3, 7, 4, 5, 2]) == [[0, 2], [1], [3, 4]]
    assert rows_of([3, 7, 4, 5, 2], capacity=10) == [[0, 1], [2, 3], [4]]
    assert rows_of([5, 5]) == [[0], [1]]
    with pytest.raises(ValueError, match="7 tokens does not fit into rows of 6"):
        rows_of([3, 7], capacity=6)


def turn(*spans, question=(0, 0)):
    """Turn of ids 0, 1, ... where ``spans`` are labelled."""
    last = max(end for _, end in spans)
    return Turn(list(range(last)), [i if any(a <= i < b for a, b in spans) else IGNORE for i in range(last)], question)


LONG = turn((10, 14), (18, 20), (23, 30), question=(2, 8))


@pytest.mark.parametrize(
    ("room", "ids"),
    [
        (30, [*range(30)]),
        (29, [*range(20)]),  # the third answer and its question
        (20, [*range(20)]),
        (19, [*range(14)]),
        (14, [*range(14)]),
        (12, [0, 1, *range(4, 14)]),  # the first question from its left
        (8, [0, 1, *range(8, 14)]),
        (6, [0, 1, 8, 9, 10, 11]),  # the answer from its end
        (4, [0, 1, 8, 9]),
        (0, []),
        (-3, []),
    ],
)
def test_what_is_cut_from_a_long_conversation(room, ids):
    cut = fit(LONG, room)
    assert cut.ids == ids and cut.labels == [LONG.labels[i] for i in ids]
    first, last = cut.question
    assert cut.ids[first:last] == [i for i in ids if 2 <= i < 8]


@given(st.integers(0, 12), st.integers(1, 9), st.integers(1, 9), st.integers(0, 40))
def test_what_is_cut_fits_and_keeps_its_head(head, question, answer, room):
    start = head + question + 2
    cut = fit(turn((start, start + answer), question=(head, head + question)), room)
    assert len(cut.ids) == len(cut.labels) == min(room, start + answer)
    assert cut.ids[: min(head, room)] == [*range(min(head, room))]
    assert fit(cut, room) == cut


def document(base, prefix, *lengths):
    """A document whose turns have two unlabelled tokens and ``length`` labelled ones; ids from ``base`` on."""
    turns, at = [], base + prefix
    for length in lengths:
        ids = list(range(at, at + 2 + length))
        turns.append(Turn(ids, [IGNORE, IGNORE, *ids[2:]]))
        at += len(ids)
    return Document(list(range(base, base + prefix)), torch.arange(prefix).expand(3, -1), turns)


def test_documents_see_only_themselves():
    one, two, three = document(100, 3, 1, 2), document(200, 0, 2), document(300, 2, 1)
    packed = pack([[one, two], [three]], pad_id=9)
    assert packed.input_ids_BS[0].tolist() == [100, 101, 102, 103, 104, 105, 106, 107, 108, 109, 200, 201, 202, 203]
    assert packed.position_ids_RBS[2, 0].tolist() == [0, 1, 2, 3, 4, 5, 3, 4, 5, 6, 0, 1, 2, 3]
    assert packed.labels_BS[0].tolist() == [
        *[IGNORE] * 4, 105, IGNORE, IGNORE, 108, 109, IGNORE, IGNORE, 202, 203, IGNORE,
    ]  # fmt: skip
    assert packed.turn_BS[0].tolist() == [-1, -1, -1, -1, 0, -1, -1, 1, 1, -1, -1, 2, 2, -1]
    assert packed.input_ids_BS[1].tolist() == [300, 301, 302, 303, 304, *[9] * 9]
    assert packed.length_B.tolist() == [14, 5] and float(packed.padding) == pytest.approx(9 / 28)
    mask = packed.mask_B1SS[:, 0]
    sees = [[key for key in range(14) if mask[0, query, key]] for query in range(14)]
    assert sees[2] == [0, 1, 2] and sees[5] == [0, 1, 2, 3, 4, 5] and sees[8] == [0, 1, 2, 6, 7, 8]
    assert sees[10] == [10] and sees[13] == [10, 11, 12, 13]
    assert [mask[1, query].nonzero().flatten().tolist() for query in (4, 5, 13)] == [[0, 1, 2, 3, 4], [5], [13]]


def test_what_has_no_labels_or_no_tokens_is_packed_all_the_same():
    empty = Document([], torch.zeros(1, 0, dtype=torch.long), [Turn([], [])])
    silent = Document([5], torch.zeros(1, 1, dtype=torch.long), [Turn([6, 7], [IGNORE, IGNORE]), Turn([], [])])
    packed = pack([[empty, silent], [empty]], pad_id=0)
    assert packed.input_ids_BS.tolist() == [[5, 6, 7], [0, 0, 0]] and (packed.turn_BS == -1).all()
    assert pack([[empty]], pad_id=0).input_ids_BS.shape == (1, 1)


def test_a_turn_cannot_begin_with_a_label():
    with pytest.raises(ValueError, match="first token of a turn has a label"):
        pack([[Document([1], torch.zeros(1, 1, dtype=torch.long), [Turn([2], [2])])]], pad_id=0)
