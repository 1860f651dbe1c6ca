"""Numbers alone join nothing: what a row asks has to be what the annotations ask under its number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from cropl.benchmarks.answers import read_answers
from cropl.benchmarks.base import AnswersError, Truth, judged, read_truths
from cropl.benchmarks.join import join
from cropl.benchmarks.names import benchmark
from cropl.data.readers.llava_questions import SHORT_ANSWER
from tests.benchmarks.test_submissions import FILES, annotations, sample
from tests.data.readers.conftest import published as published
from tests.testbed.test_official import exported as exported


def written(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def labels(folder: Path, category: str, *things: str) -> Path:
    rows = [
        {"question_id": i, "image": "a.jpg", "text": f"Is there a {thing} in the image?", "label": "yes"}
        for i, thing in enumerate(things, start=1)
    ]
    return written(folder / f"coco_pope_{category}.json", rows)


@pytest.mark.parametrize("name", [name for name in FILES if name != "vqav2"])  # whose annotations have no questions
def test_annotations_know_their_questions(name: str, exported: Path) -> None:
    assert all(truth.question for truth in read_truths(benchmark(name), annotations(name, exported)))


def test_a_number_of_another_file_joins_nothing(tmp_path: Path) -> None:
    pope = benchmark("pope")
    files = [labels(tmp_path, "adversarial", "cat", "dog"), labels(tmp_path, "popular", "car", "tree")]
    truths = read_truths(pope, files)
    cat = f"Is there a CAT  in the image?{SHORT_ANSWER}"
    assert join(pope, truths, [sample("1", cat), sample("20000002", "is there a tree in the image?")], whole=False) == [
        "adversarial/1",
        "popular/2",
    ]
    with pytest.raises(AnswersError, match=r"1 not in the annotations \(1\)"):
        join(pope, truths, [sample("1", f"Is there a car in the image?{SHORT_ANSWER}")], whole=False)
    rows = [{"question_id": 1, "prompt": cat, "text": "Yes"}, {"question_id": 2, "prompt": cat, "text": "no"}]
    with pytest.raises(AnswersError, match=r"row 2 asks 'Is there a CAT.*not the question adversarial/2"):
        read_answers(written(tmp_path / "a.jsonl", rows), pope, truths)


def test_the_only_category_is_what_bare_numbers_are_of(tmp_path: Path) -> None:
    """An answers file of POPE's popular questions is numbered from 1, like those of the others."""
    pope = benchmark("pope")
    truths = read_truths(pope, [labels(tmp_path, "popular", "car", "tree")])
    rows = [
        {"question_id": i, "prompt": f"Is there a {t} in the image?", "text": "no"}
        for i, t in ((1, "car"), (2, "tree"))
    ]
    found = read_answers(written(tmp_path / "a.jsonl", rows), pope, truths)
    assert found == {"popular/1": "no", "popular/2": "no"} and judged(pope, truths, found).shape == (2, 4)
    assert join(pope, truths, [sample("2", rows[1]["prompt"]), sample("20000001", rows[0]["prompt"])]) == [
        "popular/2", "popular/1"
    ]  # fmt: skip
    with pytest.raises(
        AnswersError, match="row 1 asks 'Is there a cat in the image.', which is not the question popular/1"
    ):
        read_answers(
            written(tmp_path / "a.jsonl", [{**rows[0], "prompt": "Is there a cat in the image?"}]), pope, truths
        )


def test_only_readers_number_ids_again(tmp_path: Path) -> None:
    gqa, truths = benchmark("gqa"), [Truth("7", ("x",), question="What is it?"), Truth("8", ("x",))]
    assert join(gqa, truths, [sample("7-2", "What is it?"), sample("8-3")]) == ["7", "8"]
    path = written(tmp_path / "a.jsonl", [{"question_id": "7-2", "text": "a"}, {"question_id": "8", "text": "b"}])
    assert read_answers(path, gqa, truths) == {"7-2": "a", "8": "b"}  # the first of which is to no question


@pytest.mark.parametrize(
    ("name", "truth", "prompt"),
    [
        ("scienceqa", "Which one is  it?", f"<image>\nContext: a\nWhich one is it?\n(A) x\n(B) y{SHORT_ANSWER}"),
        ("gqa", "Is it overcast?", f"Is it overcast?{SHORT_ANSWER}"),
        ("textvqa", "What IS it?", f"What is it?\nReference OCR token: a{SHORT_ANSWER}"),
        ("pope", "Is there a cat in the image?", "is there a cat in the image?"),
        ("mme", "Is it red? Please answer yes or no.", f"Is it red?{SHORT_ANSWER}"),
        ("mme", "Is it red?  Please answer yes or no", "Is it red? Please answer yes or no."),
        ("gqa", "What is it?", "Another instruction, with the question in its own place: What is it? Answer:"),
    ],
)  # fmt: skip
def test_prompts_that_ask_the_question(name: str, truth: str, prompt: str) -> None:
    one = Truth("x/1", ("x",), question=truth)
    assert benchmark(name).asks(one, prompt) and not benchmark(name).asks(one, "What colour is the sky?")


def test_a_prompt_of_ones_own_may_say_it_otherwise() -> None:
    """The question of a sample is enough: it is what the reader found in the file."""
    truths = [Truth("1", ("x",), question="Q?")]
    assert join(benchmark("gqa"), truths, [sample("1", "Tell me everything.")]) == ["1"]
    with pytest.raises(AnswersError, match="not in the annotations"):
        join(benchmark("gqa"), [Truth("1", ("x",), question="What?")], [sample("1", "Tell me everything.")])


def test_llavas_published_files_of_answers_still_score(published: Any, tmp_path: Path) -> None:
    """Their rows have the prompts; both with all three categories, and with one of them."""
    pope = benchmark("pope")
    files = [published(f"pope/coco_pope_{category}.json") for category in ("adversarial", "popular", "random")]
    asked = [json.loads(line) for line in published("llava/llava_pope_test.jsonl").read_text().splitlines()]
    rows = [{"question_id": row["question_id"], "prompt": row["text"], "text": "Yes"} for row in asked]
    truths = read_truths(pope, files)
    assert judged(pope, truths, read_answers(written(tmp_path / "a.jsonl", rows), pope, truths)).sum() == 8910
    popular = [row for row in rows if row["question_id"] > 20_000_000]
    for shift in (0, 20_000_000):
        mine = [{**row, "question_id": row["question_id"] - shift} for row in popular]
        truths = read_truths(pope, files[1:2])
        assert judged(pope, truths, read_answers(written(tmp_path / "a.jsonl", mine), pope, truths)).sum() == 3000


def test_llavas_gqa_joins_by_number_and_question(published: Any, tmp_path: Path) -> None:
    gqa, file = benchmark("gqa"), published("llava/llava_gqa_testdev_balanced.jsonl")
    asked = [json.loads(line) for line in file.read_text().splitlines()]
    theirs = {
        str(row["question_id"]): {"answer": "x", "isBalanced": True, "question": row["text"].split("\n")[0]}
        for row in asked
    }
    (tmp_path / "q.json").write_text(json.dumps(theirs))
    truths = read_truths(gqa, [tmp_path / "q.json"])
    rows = [{"question_id": row["question_id"], "prompt": row["text"], "text": "X."} for row in asked]
    assert judged(gqa, truths, read_answers(written(tmp_path / "a.jsonl", rows), gqa, truths))[:, 0].sum() == len(rows)
    rows[0]["prompt"], rows[1]["prompt"] = rows[1]["prompt"], rows[0]["prompt"]
    with pytest.raises(AnswersError, match=f"row 1 asks .* not the question {asked[0]['question_id']}"):
        read_answers(written(tmp_path / "a.jsonl", rows), gqa, truths)
