"""Official scorers against a second statement of their rules, on thousands of nasty answers, and by hand."""

from __future__ import annotations

import random

import numpy as np
import pytest

from cropl.benchmarks.base import AnswersError, Benchmark, Truth, judged
from cropl.benchmarks.gqa import Gqa
from cropl.benchmarks.mme import Mme
from cropl.benchmarks.pope import Pope
from cropl.benchmarks.scienceqa import ScienceQA, SmallLetters
from cropl.benchmarks.scoring import Score, compare, tally
from cropl.benchmarks.textvqa import TextVqa
from cropl.benchmarks.vqa_text import challenge
from cropl.benchmarks.vqav2 import VqaV2
from cropl.data.readers.llava_questions import SHORT_ANSWER
from tests.reference import official

WORDS = """
    yes no No NO not none None two ten a an the The dont don't couldn't've it's its 3,000 3,,000 1.5 .5 5. $5.00 U.S.A.
    St. self-made red Red RED é ٣,٤ ½ A B C E F . , ? ! ; / - _ ' " ( ) I'd've oclock yesno ye nono ß İ
"""
PIECES = [
    *WORDS.split(), "A. ", "B. dog", "The answer is A.", "The answer is D", "the answer is B.", "\n", "\t", " ", "  ",
    "", ". . .", "." * 40, "x" * 300, "\u00a0",
]  # fmt: skip


def score(benchmark: Benchmark, truths: list[Truth], answers: dict[str, str]) -> Score:
    """Of what a model answered."""
    said = {id: benchmark.submitted(text) for id, text in answers.items()}
    return tally(benchmark, truths, judged(benchmark, truths, said))


def nasty(count: int, seed: int) -> list[str]:
    rng = random.Random(seed)
    join = ["", " ", " ", ", ", ". "]
    return [rng.choice(join).join(rng.choices(PIECES, k=rng.randint(0, 5))) for _ in range(count)]


ANSWERS = nasty(2500, 0)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Two dogs", "2 dogs"), ("the U.S.A.", "usa"), ("3,000", "3000"), ("it's", "it 's"), ("dont", "don't"),
        ("St. Louis", "st louis"), ("self-made", "self made"), ("red,white", "redwhite"), ("a b/c", "b c"),
        ("$5.00", "$5.00"), ("None", "0"), ("Hello, world!", "hello world"),
    ],
)  # fmt: skip
def test_published_examples_of_the_challenges_normalisation(text, expected) -> None:
    assert challenge(text) == official.challenge(text) == expected


def test_the_number_of_full_stops_that_go_is_a_flag_by_mistake() -> None:
    assert challenge("." * 40) == "." * 8 == official.challenge("." * 40)


def test_textvqa_and_vqav2_are_the_rules() -> None:
    rng = random.Random(1)
    textvqa, vqav2 = TextVqa(), VqaV2()
    for answer in ANSWERS:
        pool = [answer, answer.upper(), *rng.choices(ANSWERS, k=2)]
        given = tuple(rng.choices(pool, k=10)) if rng.random() < 0.9 else (rng.choice(pool),) * 10
        truth = Truth("1", given)
        assert textvqa.judge(truth, answer) == (10 * official.textvqa(answer, given), 1)
        assert vqav2.judge(truth, vqav2.submitted(answer)) == (10 * official.vqav2(answer, given), 1)


@pytest.mark.parametrize(("matches", "expected"), [(0, 0), (1, 3), (2, 6), (3, 9), (4, 10), (10, 10)])
def test_a_tenth_for_each_way_of_leaving_an_annotator_out(matches, expected) -> None:
    given = ("red",) * matches + tuple(f"other {i}" for i in range(10 - matches))
    assert TextVqa().judge(Truth("1", given), "Red.") == (expected, 1)


def test_vqav2_compares_as_given_where_all_agree() -> None:
    for said, given in (("self made", "Self-Made"), ("stop", "STOP"), ("stop", "stop.")):
        assert VqaV2().judge(Truth("1", (given,) * 10), said) == (0, 1)
        assert VqaV2().judge(Truth("1", (given,) * 9 + ("x",)), said) == (10, 1)


def test_pope_and_mme_and_scienceqa_are_the_rules() -> None:
    rng = random.Random(2)
    pope, mme, scienceqa = Pope(), Mme(), ScienceQA()
    for answer in ANSWERS:
        assert pope.says_yes(answer) == (official.pope(answer) == "yes")
        assert mme.says(answer) == official.mme(answer)
        choices, right = rng.randint(2, 5), rng.randint(0, 1)
        truth = Truth("1", ("ABCDE"[right],), choices=choices)
        assert scienceqa.judge(truth, answer) == (official.scienceqa(answer, choices) == right, 1)


@pytest.mark.parametrize(
    ("answer", "right"),
    [
        ("Red.", True),
        ("red...", True),
        (" red", False),
        ("red ", False),
        ("the red", False),
        ("RED", True),
        ("", False),
    ],
)
def test_gqa_strips_full_stops_behind_and_nothing_else(answer, right) -> None:
    assert Gqa().judge(Truth("1", ("red",)), Gqa().submitted(answer)) == (right, 1)


def test_gqas_binary_and_open_questions() -> None:
    truths = [Truth("1", ("yes",), "binary"), Truth("2", ("no",), "binary"), Truth("3", ("cat",), "open")]
    found = score(Gqa(), truths, {"1": "yes", "2": "yes", "3": "Cat."})
    assert found.values == pytest.approx({"accuracy": 200 / 3, "binary": 50, "open": 100}) and found.n == 3


def test_mme_counts_pairs() -> None:
    truths = [
        Truth(f"count/{i}{end}", (says,), "count", f"count/{i}")
        for i in range(4)
        for end, says in (("", "yes"), ("-2", "no"))
    ]
    answers = {truth.id: truth.answers[0].title() for truth in truths} | {"count/0": "No", "count/1-2": "maybe"}
    found = score(Mme(), truths, answers)
    assert found.values["count"] == found.values["total"] == pytest.approx(100 * 6 / 8 + 100 * 2 / 4)
    assert found.values["cognition"] == 0
    low, high = found.intervals["total"]
    assert 0 < low < 125 < high <= 200
    with pytest.raises(ValueError, match="an image with 1 questions"):
        score(Mme(), truths[:-1], {truth.id: "yes" for truth in truths[:-1]})


def test_pope_is_the_mean_of_its_categories() -> None:
    said = {"random": "yyyn", "popular": "nnnn"}
    truths = [Truth(f"{group}/{i}", ("yes" if i < 2 else "no",), group) for group in said for i in range(4)]
    answers = {
        f"{group}/{i}": "Yes" if one == "y" else "No, not" for group, all in said.items() for i, one in enumerate(all)
    }
    found = score(Pope(), truths, answers).values
    # random: two right yes, one wrong yes, one right no; popular: no yes at all
    assert found["random_f1"] == pytest.approx(80) and found["random_precision"] == pytest.approx(200 / 3)
    assert found["popular_f1"] == 0 and found["popular_accuracy"] == 50
    assert found["f1"] == pytest.approx(40) and found["accuracy"] == pytest.approx(62.5) and found["yes"] == 37.5


def test_scienceqa_with_and_without_image() -> None:
    truths = [
        Truth("1", ("A",), "image", choices=2),
        Truth("2", ("B",), "text", choices=2),
        Truth("3", ("B",), "text", choices=2),
    ]
    found = score(ScienceQA(), truths, {"1": "A", "2": "B. dog", "3": "C"}).values
    assert found == pytest.approx({"accuracy": 200 / 3, "image_accuracy": 100, "text_accuracy": 50})


@pytest.mark.parametrize(
    ("benchmark", "id", "prompt", "expected"),
    [
        (Pope(), "17", "", "adversarial/17"), (Pope(), "10000017", "", "random/17"),
        (Pope(), "20003000", "", "popular/3000"), (Pope(), "random/17", "", "random/17"),
        (Mme(), "celebrity/images/x.jpg", f"Is it he?{SHORT_ANSWER}", "celebrity/x/Is it he?"),
        (Mme(), "count/12.png", f"Two?{SHORT_ANSWER}", "count/12/Two?"),
        (Mme(), "count/12-2.png", f"Two?  Please answer yes or no. {SHORT_ANSWER}", "count/12-2/Two?"),
        (TextVqa(), "003a", "What IS it?\nReference OCR token: A, B\nAnswer", "003a/what is it?"),
        (TextVqa(), "003a", "Reference OCR token: A, B\nWhat IS it?\nAnswer", "003a/what is it?"),
        (Gqa(), "2013", "x", "2013"),
    ],
)  # fmt: skip
def test_published_ids_find_their_questions(benchmark, id, prompt, expected) -> None:
    assert benchmark.known_as(id, prompt) == expected


def test_a_model_without_capitals_chooses_by_its_letters() -> None:
    truths = [Truth(str(i), ("B",), "image", choices=3) for i in range(3)]
    answers = {"0": "b", "1": "b. dog", "2": "a"}
    assert score(SmallLetters(), truths, answers).values["accuracy"] == pytest.approx(200 / 3)
    assert score(ScienceQA(), truths, answers).values["accuracy"] == 0


def test_paired_intervals_are_narrower_than_each_ones_own() -> None:
    rng = np.random.default_rng(0)
    truths = [Truth(str(i), ("a",)) for i in range(300)]
    right = rng.random(300) < 0.6
    better = right | (rng.random(300) < 0.05)
    theirs_QC, ours_QC = (np.stack([one, np.ones(300, bool)], 1).astype(np.int64) for one in (right, better))
    difference, low, high = compare(Gqa(), truths, ours_QC, theirs_QC)["accuracy"]
    assert difference == pytest.approx(100 * (better.mean() - right.mean())) and low <= difference <= high
    own = tally(Gqa(), truths, ours_QC).intervals["accuracy"]
    assert high - low < (own[1] - own[0]) / 2
    assert compare(Gqa(), truths, ours_QC, ours_QC)["accuracy"] == (0, 0, 0)


def test_answers_that_do_not_fit_are_named() -> None:
    truths = [Truth(str(i), ("a",)) for i in range(3)]
    with pytest.raises(AnswersError, match=r"1 without an answer \(2\); 1 not among the questions \(7\)"):
        score(Gqa(), truths, {"0": "a", "1": "a", "7": "a"})
    with pytest.raises(AnswersError, match=r"1 asked twice \(0\)"):
        score(Gqa(), [*truths, truths[0]], dict.fromkeys("012", "a"))
    with pytest.raises(ValueError, match="no questions"):
        score(Gqa(), [], {})


def test_intervals_are_those_of_the_mean_and_pair_by_seed() -> None:
    rng = np.random.default_rng(0)
    truths = [Truth(str(i), ("a",)) for i in range(400)]
    counts_QC = np.stack([rng.random(400) < 0.7, np.ones(400, bool)], axis=1).astype(np.int64)
    found = tally(Gqa(), truths, counts_QC)
    right = found.values["accuracy"] / 100
    spread = 196 * (right * (1 - right) / 400) ** 0.5
    low, high = found.intervals["accuracy"]
    assert 100 * right - low == pytest.approx(spread, rel=0.1) and high - 100 * right == pytest.approx(spread, rel=0.1)
    assert tally(Gqa(), truths, counts_QC).intervals == found.intervals != tally(Gqa(), truths, counts_QC, 1).intervals


def test_what_is_asked_about_one_image_is_drawn_together() -> None:
    """Ten equal answers about each image say no more than one."""
    rng = np.random.default_rng(0)
    right = np.repeat(rng.random(60) < 0.7, 10)
    counts_QC = np.stack([right, np.ones(600, bool)], axis=1).astype(np.int64)
    groups = ("binary", "open")
    together = [Truth(str(i), ("a",), groups[i % 2], f"image {i // 10}") for i in range(600)]
    once = [Truth(str(i), ("a",)) for i in range(60)]
    low, high = tally(Gqa(), together, counts_QC).intervals["accuracy"]
    expected = tally(Gqa(), once, counts_QC[::10]).intervals["accuracy"]
    assert (low, high) == pytest.approx(expected, abs=1.8)
    apart = [Truth(str(i), ("a",)) for i in range(600)]
    least, most = tally(Gqa(), apart, counts_QC).intervals["accuracy"]
    assert most - least < (high - low) / 2


def test_gqas_unbalanced_questions_count_in_nothing() -> None:
    truths = [Truth("1", ("yes",), "binary"), Truth("2", ("no",), "open", counted=False)]
    for answers in ({"1": "yes", "2": "yes"}, {"1": "yes"}):  # they may be answered
        found = score(Gqa(), truths, answers)
        assert found.values == {"accuracy": 100, "binary": 100} and found.n == 1
