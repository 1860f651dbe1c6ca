"""The testbed's world: reproducible, disjoint, and its evidence really is where the answer is."""

from __future__ import annotations

import numpy as np
import pytest

from cropl.grid import TokenGrid
from cropl.testbed.labels import IGNORE, KIND_NAMES, dense_labels
from cropl.testbed.questions import questions
from cropl.testbed.samples import samples
from cropl.testbed.scenes import scene
from cropl.testbed.tokenizer import vocabulary
from cropl.testbed.world import COLORS, KINDS, SHAPES


def test_a_scene_is_a_function_of_split_and_index():
    assert scene("train", 5) == scene("train", 5)
    assert np.array_equal(np.asarray(scene("test", 5).render()), np.asarray(scene("test", 5).render()))
    assert len({scene(split, 5) for split in ("train", "val", "test")}) == 3


def test_an_unknown_split_is_named():
    with pytest.raises(ValueError, match="'dev'"):
        scene("dev", 0)


@pytest.mark.parametrize("index", range(30))
def test_things_lie_inside_and_do_not_overlap(index):
    one = scene("val", index)
    for i, thing in enumerate(one.things):
        x0, y0, x1, y1 = thing.box
        assert 0 <= x0 < x1 <= one.width and 0 <= y0 < y1 <= one.height
        for other in one.things[:i]:
            a, b = thing.box, other.box
            assert a[2] <= b[0] or b[2] <= a[0] or a[3] <= b[1] or b[3] <= a[1]


@pytest.mark.parametrize("index", range(60))
def test_answers_follow_from_the_things_of_the_scene(index):
    """An independent reading of each question against the scene's own list of things."""
    one = scene("test", index)
    shapes = [t for t in one.things if t.kind != "sign"]
    for q in questions(one):
        words = q.text.replace("?", "").split()
        if q.kind == "text":
            (sign,) = [t for t in one.things if t.kind == "sign" and t.color == words[5]]
            assert q.answer == sign.word and q.boxes == (sign.box,)
        elif q.kind == "count":
            counted = [t for t in shapes if t.kind == words[2]]
            assert q.answer == str(len(counted)) and set(q.boxes) == {t.box for t in counted}
        elif q.kind == "existence":
            there = [t for t in shapes if (t.color, t.kind) == (words[3], words[4])]
            assert q.answer == ("yes" if there else "no")
            assert set(q.boxes) == ({t.box for t in there} if there else {(0.0, 0.0, one.width, one.height)})
        elif q.kind == "relation":
            b, a = (next(t for t in one.things if t.name == f"{words[i]} {words[i + 1]}") for i in (5, 9))
            offset = {"left": b.center[0] - a.center[0], "right": a.center[0] - b.center[0],
                      "above": b.center[1] - a.center[1], "below": a.center[1] - b.center[1]}  # fmt: skip
            assert max(offset, key=offset.__getitem__) == q.answer and set(q.boxes) == {a.box, b.box}
        else:
            at = 4 if words[1] == "color" else 3  # What color is the STAR, What shape is RED
            (thing,) = [t for t in shapes if words[at] in (t.kind, t.color)]
            assert q.boxes == (thing.box,)
            asked = thing.color if words[1] == "color" else thing.kind
            options = dict(zip(words[at + 1 :: 2], words[at + 2 :: 2]))
            assert options.get(q.answer, q.answer) == asked


def test_every_word_of_questions_and_answers_is_known():
    known = set(vocabulary())
    for index in range(50):
        for q in questions(scene("train", index)):
            assert set(q.text.lower().replace("?", " ?").split()) | {q.answer.lower()} <= known


def test_samples_are_spread_over_the_kinds_and_share_their_picture():
    made = samples("test", 60)
    assert len(made) == 60 and len({s.key for s in made}) == 60
    counts = {kind: sum(s.kind == kind for s in made) for kind in KINDS}
    assert min(counts.values()) >= 6
    assert made[0].image is made[1].image


def test_dense_labels_say_what_lies_under_each_cell():
    one = scene("train", 3)
    grid = TokenGrid.padded_square(24, one.width, one.height)
    labels = dense_labels(one, grid)
    side = max(one.width, one.height)
    for cell in range(grid.num_tokens):
        x = grid.left + (cell % 24 + 0.5) * side / 24
        y = grid.top + (cell // 24 + 0.5) * side / 24
        under = [t for t in one.things if t.box[0] < x < t.box[2] and t.box[1] < y < t.box[3]]
        kind = KIND_NAMES[labels.kind_V[cell]]
        assert kind == (under[0].kind if under else "background")
        assert labels.color_V[cell] == (list(COLORS).index(under[0].color) if under else IGNORE)
    assert labels.center_V.sum() >= len(one.things) - 1
    assert set(SHAPES) & {t.kind for t in one.things}
