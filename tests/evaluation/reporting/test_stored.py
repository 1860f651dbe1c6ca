"""Stored answers: what a gallery and a histogram take of them."""

from __future__ import annotations

import json

import pytest
from PIL import Image

from cropl.errors import UsageError
from cropl.evaluation.reporting import stored
from cropl.grid import TokenGrid
from tests.evaluation.suites import arm, suite
from tests.evaluation.suites import stored as store

ILP = "ilp-predicted-2-64"


@pytest.fixture
def lines(tmp_path):
    folder = store(tmp_path / "run", suite([arm("dense"), arm("ilp", 64)]))
    return folder / "textvqa/predictions.jsonl"


def changed(path, number, **changes):
    lines = [json.loads(text) for text in path.read_text().splitlines()]
    lines[number] |= changes
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return lines[number]


def test_pictures_that_are_there_are_candidates_and_the_others_are_counted(lines):
    found = stored.read(lines, ILP, "dense")
    assert (found.n, found.without_picture, len(found.candidates), len(found.recalls)) == (12, 6, 6, 12)
    assert set(found.candidates[0]["arms"]) == {ILP, "dense"}
    assert stored.picture(found.candidates[0]).size == (120, 90)
    assert stored.read(lines, None, "dense").candidates == []
    assert not stored.read(lines.parents[1] / "mme/predictions.jsonl", ILP, "dense").recalls  # it has no boxes


def test_answers_that_only_a_server_can_judge_are_told_apart(lines):
    answer = {"prediction": "a", "correct": None, "credit": None, "tokens_kept": 64}
    first = stored.read(lines, ILP, "dense").candidates[0]["key"]
    changed(lines, int(first.split("-")[1]) - 2, arms={ILP: answer, "dense": answer})
    found = stored.read(lines, ILP, "dense")
    assert (found.unjudged, len(found.candidates)) == (1, 5)


def test_few_questions_of_a_group_are_held(lines):
    line = json.loads(lines.read_text().splitlines()[1])
    line["image"] = str(lines.parents[1] / "photo.png")
    lines.write_text((json.dumps(line) + "\n") * 500)
    found = stored.read(lines, ILP, "dense")
    assert (found.n, len(found.candidates)) == (500, stored.CANDIDATES)


@pytest.mark.parametrize(
    "text",
    ["{", "[]", "null", "{}", '{"arms": {}, "region": [9], "predicted_region": [1]}', '{"arms": {}, "image": []}'],
)
def test_a_line_that_is_no_answer_is_named(lines, text):
    lines.write_text(lines.read_text() + text + "\n")
    with pytest.raises(UsageError, match="line 13 is no record of answers"):
        stored.read(lines, ILP, "dense")


GRID = vars(TokenGrid.padded_square(24, 120, 90))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        *(({name: ...}, f"KeyError: {name!r}") for name in ("key", "kind", "question", "answers", "image_key", "arms")),
        ({"kind": 3}, "kind '3' is no text"), ({"answers": [1]}, "answer 1 '1' is no text"),
        ({"answers": 1}, "TypeError"),
        ({"image_key": []}, "image_key"), ({"grid": "x"}, "TypeError"),
        ({"grid": {**GRID, "image_width": 0}}, "ValueError"),
        ({"grid": {**GRID, "image_width": 10**400, "width": 10**400}}, "Error"),
        ({"grid": {**GRID, "rows": 2.5}}, "Error"),
        ({"grid": {"grids": ["x"]}}, "TypeError"), ({"image": "x" * 5000}, "OSError"), ({"image": 5}, "TypeError"),
        ({"arms": "dense"}, "Error"), ({"arms": {ILP: 1, "dense": 2}}, "Error"), ({"region": [9, 9, 9, 9]}, "region"),
    ],
    ids=lambda one: str(one)[:40],
)  # fmt: skip
def test_what_a_card_cannot_be_made_of_is_named(lines, change, said):
    line = next(
        one for one in map(json.loads, lines.read_text().splitlines()) if str(one["image"]).endswith("photo.png")
    )
    line = {key: value for key, value in {**line, **change}.items() if value is not ...}
    lines.write_text(lines.read_text() + json.dumps(line) + "\n")
    with pytest.raises(UsageError, match=f"predictions.jsonl: line 13 is no record of answers .*{said}"):
        stored.read(lines, ILP, "dense")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"kept": "x"}, "ValueError"), ({"kept": "f"}, "kept holds 4 of the 576 tokens"), ({"kept": 1}, "TypeError"),
        ({"tokens_kept": ...}, "KeyError: 'tokens_kept'"), ({"tokens_kept": "x"}, "tokens_kept 'x' is no number"),
        ({"prediction": ...}, "KeyError: 'prediction'"), ({"prediction": None}, "prediction 'None' is no text"),
        ({"credit": "x"}, "TypeError"), ({"region": "x"}, "TypeError"),
    ],
    ids=lambda one: str(one)[:40],
)  # fmt: skip
def test_an_answer_that_a_card_cannot_show_is_named(lines, change, said):
    line = next(
        one for one in map(json.loads, lines.read_text().splitlines()) if str(one["image"]).endswith("photo.png")
    )
    mine = {key: value for key, value in {**line["arms"][ILP], **change}.items() if value is not ...}
    line["arms"][ILP] = mine
    lines.write_text(json.dumps(line) + "\n")
    with pytest.raises(UsageError, match=f"line 1 is no record of answers .*{said}"):
        stored.read(lines, ILP, "dense")


@pytest.mark.parametrize("text", [b"\xff\xfe\x00", b"[" * 100_000, b'{"arms": 1' + b"0" * 5000 + b"}"])
def test_bytes_that_are_no_json_are_named(lines, text):
    lines.write_bytes(lines.read_bytes() + text + b"\n")
    with pytest.raises(UsageError, match="line 13 is no record of answers"):
        stored.read(lines, ILP, "dense")


def test_another_picture_is_refused(lines):
    candidate = stored.read(lines, ILP, "dense").candidates[0]
    Image.new("RGB", (90, 120)).save(candidate["image"])
    with pytest.raises(UsageError, match="another shape than the 120x90 picture of question"):
        stored.picture(candidate)
