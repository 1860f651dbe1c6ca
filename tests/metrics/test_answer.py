"""Answer accuracy: normalisation, kinds, padding, precisions and two ranks."""

import math

import pytest
import torch

from cropl.metrics.answer import AnswerAccuracy, exact_match, normalise


@pytest.mark.parametrize(
    ("pred", "answers", "right"),
    [
        ("Red", ["red"], True),
        (" red.\n", ["Red"], True),
        ("red", ["blue", "RED."], True),
        ("dark red", ["red"], False),
        ("3.5", ["3.5"], True),
        ("", ["red"], False),
        ("No .", ["no"], True),
    ],
)
def test_exact_match(pred: str, answers: list[str], right: bool) -> None:
    assert exact_match(pred, answers) is right


def test_answers_must_be_a_list() -> None:
    for answers in ([], "red"):
        with pytest.raises(ValueError, match="answers"):
            exact_match("red", answers)
    assert normalise("  Stop Sign. ") == "stop sign"


def test_by_hand() -> None:
    metric = AnswerAccuracy()
    metric.update([True, False, True], ["text", "text", "count"])
    metric.update([True, True], ["count", "choice"], valid=[True, False])
    metric.update([False])
    scores = {name: float(value) for name, value in metric.compute().items()}
    assert scores == {"accuracy": 3 / 5, "accuracy_text": 0.5, "accuracy_count": 1.0}


def test_counts_survive_low_precision() -> None:
    metric = AnswerAccuracy(["a"]).to(torch.bfloat16).half()
    for _ in range(3):
        metric.update([True] * 300 + [False], ["a"] * 301)
        metric = metric.to(torch.float16).set_dtype(torch.bfloat16)
    assert metric.counts.dtype == torch.int64 and float(metric.compute()["accuracy_a"]) == 900 / 903


def test_two_ranks_add_up() -> None:
    whole, first, second = AnswerAccuracy(), AnswerAccuracy(), AnswerAccuracy()
    whole.update([True, False, True], ["text", "count", "count"])
    first.update([True], ["text"])
    second.update([False, True], ["count", "count"])
    first.merge_state(second)
    assert {k: float(v) for k, v in first.compute().items()} == {k: float(v) for k, v in whole.compute().items()}


def test_nothing_counted_and_bad_input() -> None:
    metric = AnswerAccuracy()
    metric.update([])
    assert math.isnan(float(metric.compute()["accuracy"]))
    with pytest.raises(ValueError, match="colour"):
        metric.update([True], ["colour"])
    with pytest.raises(ValueError, match="2 kinds"):
        metric.update([True], ["text", "text"])
