"""Renumbered positions under M-RoPE against loops over lists, on drawn pictures, choices and paddings."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cropl.pruning.gather import Rows
from cropl.pruning.positions import Unpruned
from tests.reference import mrope


@st.composite
def rows(draw: st.DrawFn) -> tuple[list[mrope.Place], list[bool]]:
    """One row's tokens, and which of them stay: all of the text."""
    found: list[mrope.Place] = ["text"] * draw(st.integers(1, 3))
    for _ in range(draw(st.integers(0, 3))):
        height, width = draw(st.integers(1, 4)), draw(st.integers(1, 4))
        found += [(row, col) for row in range(height) for col in range(width)]
        found += ["text"] * draw(st.integers(1, 3))
    return found, [place == "text" or draw(st.booleans()) for place in found]


@given(
    st.lists(rows(), min_size=1, max_size=3),
    st.booleans(),
    st.none() | st.lists(st.booleans(), min_size=3, max_size=3),
    st.integers(0, 5),
)
@settings(max_examples=200, deadline=None)
def test_survivors_are_numbered_as_if_alone(batch, left, made, start) -> None:
    longest = max(len(found) for found, _ in batch)
    attended_BS = torch.zeros(len(batch), longest, dtype=torch.bool)
    visual_BS, keep_BS = attended_BS.clone(), attended_BS.clone()
    position = torch.zeros(3, len(batch), longest, dtype=torch.long)
    for row, (found, kept) in enumerate(batch):
        at = slice(longest - len(found), longest) if left else slice(0, len(found))
        attended_BS[row, at] = True
        visual_BS[row, at] = torch.tensor([place != "text" for place in found])
        keep_BS[row, at] = torch.tensor(kept)
        position[:, row, at] = torch.tensor(mrope.positions(found)).T + start
    unpruned = Unpruned(attended_BS, visual_BS, position)
    rows_ = Rows.of(keep_BS, keep_BS.sum(1).tolist())
    changed_B = keep_BS.sum(1) < attended_BS.sum(1)
    new_3BM, shift_B = unpruned.compact(rows_, changed_B, None if made is None else torch.tensor(made[: len(batch)]))
    for row, (found, kept) in enumerate(batch):
        stay = [place for place, stays in zip(found, kept, strict=True) if stays]
        if made and made[row] and not all(kept):
            stay = ["text" if place == "text" else "made" for place in stay]
        expected = torch.tensor(mrope.positions(stay)).T + start
        assert torch.equal(new_3BM[:, row, rows_.real_BM[row]], expected)
        # What follows goes on behind, as it did before.
        assert int(unpruned.next_B[row]) == max(map(max, mrope.positions(found))) + 1 + start
        assert int(unpruned.next_B[row] - shift_B[row]) == int(expected.max()) + 1


def test_a_picture_without_survivors_was_never_there() -> None:
    found: list[mrope.Place] = ["text", (0, 0), (0, 1), "text", (0, 0), (1, 0), "text"]
    position = torch.tensor(mrope.positions(found)).T[:, None]
    visual_BS = torch.tensor([[place != "text" for place in found]])
    keep_BS = torch.tensor([[True, False, False, True, False, True, True]])
    unpruned = Unpruned(torch.ones_like(visual_BS), visual_BS, position)
    new_3BM, shift_B = unpruned.compact(Rows.of(keep_BS, [4]), torch.tensor([True]), None)
    assert new_3BM[:, 0].T.tolist() == [[0, 0, 0], [1, 1, 1], [2, 2, 2], [3, 3, 3]] and shift_B.tolist() == [3]


def test_one_axis_counts_what_was_dropped() -> None:
    visual_BS = torch.tensor([[False, True, True, True, False]])
    unpruned = Unpruned(torch.ones_like(visual_BS), visual_BS, torch.arange(5)[None])
    keep_BS = torch.tensor([[True, False, True, False, True]])
    position_BM, shift_B = unpruned.compact(Rows.of(keep_BS, [3]), torch.tensor([True]), None)
    assert position_BM.tolist() == [[0, 1, 2]] and shift_B.tolist() == [2] and unpruned.next_B.tolist() == [5]
