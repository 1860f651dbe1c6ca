"""Generation settings of tasks: what is read from them, where an answer ends, and how it is drawn."""

from __future__ import annotations

import pytest
import torch

from cropl.errors import UsageError
from cropl.integrations.decoding import MAX_NEW_TOKENS, Decoding, generate
from cropl.models.vlm import load_vlm
from cropl.testbed import weights
from cropl.testbed.samples import samples


@pytest.fixture(scope="module")
def llava():
    return load_vlm(weights.resolve("testbed:llava"))


@pytest.fixture(scope="module")
def inputs(llava):
    asked = samples("test", 3)
    return llava.inputs([one.picture() for one in asked], [one.asked for one in asked])


@pytest.mark.parametrize(
    "given, options",
    [
        ({}, {"do_sample": False}),
        ({"temperature": 0, "do_sample": True, "top_p": 0.5}, {"do_sample": False}),
        ({"temperature": 0.7, "do_sample": False}, {"do_sample": False}),
        ({"temperature": 0.7}, {"do_sample": True, "temperature": 0.7}),
        ({"do_sample": True, "top_p": 0.5, "top_k": None}, {"do_sample": True, "top_p": 0.5}),
        ({"num_beams": 2, "image_aspect_ratio": "original"}, {"do_sample": False, "num_beams": 2}),
    ],
)
def test_settings_are_read(given, options):
    decoding = Decoding.of(given, "task a")
    assert dict(decoding.options) == options and decoding.max_new_tokens == MAX_NEW_TOKENS and decoding.until == ()


def test_ends_may_be_a_text_or_a_list():
    assert Decoding.of({"until": "\n"}, "").until == ("\n",)
    assert Decoding.of({"until": ["\n\n", ""], "max_new_tokens": 3}, "") == Decoding(3, ("\n\n",))
    assert Decoding.of({"until": None}, "") == Decoding()


@pytest.mark.parametrize(
    "given, message",
    [
        ({"max_new_token": 4}, "task a: generation_kwargs 'max_new_token' is not known"),
        ({"max_new_tokens": 0}, "max_new_tokens 0: must be an integer from 1"),
        ({"until": [3]}, r"until \[3\]: must be a text"),
    ],
)
def test_wrong_settings_are_named(given, message):
    with pytest.raises(UsageError, match=message):
        Decoding.of(given, "task a")


def test_answers_are_those_of_the_model_with_their_tokens(llava, inputs):
    made = generate(llava, inputs, Decoding(8))
    texts = llava.generate(inputs, max_new_tokens=8)
    assert [text for text, _ in made] == texts
    for text, count in made:
        assert count == len(llava.tokenizer(text, add_special_tokens=False)["input_ids"]) + 1
    assert generate(llava, inputs, Decoding(8, options=(("do_sample", False), ("num_beams", 1)))) == made
    assert [count for _, count in generate(llava, inputs, Decoding(1))] == [1] * len(inputs)


def test_an_answer_ends_at_the_first_of_its_ends_and_nothing_is_made_behind(llava, inputs):
    texts = [text for text, _ in generate(llava, inputs, Decoding(8))]
    end = texts[0][-1]
    made = generate(llava, inputs, Decoding(8, (end, texts[0])))
    assert made[0] == ("", len(llava.tokenizer(texts[0], add_special_tokens=False)["input_ids"]))
    for text, (cut, _) in zip(texts[1:], made[1:], strict=True):
        assert cut == text.split(end)[0].strip()


def test_beams_and_sampling_reach_the_model(llava, inputs):
    greedy = generate(llava, inputs, Decoding(8))
    best = Decoding.of({"temperature": 1.0, "top_k": 1, "max_new_tokens": 8}, "")
    assert generate(llava, inputs, best) == greedy
    hot = Decoding.of({"temperature": 50.0, "max_new_tokens": 8}, "")
    torch.manual_seed(0)
    drawn = generate(llava, inputs, hot)
    torch.manual_seed(0)
    assert drawn == generate(llava, inputs, hot) != greedy
    beams = Decoding.of({"num_beams": 3, "max_new_tokens": 8, "until": ["\n\n"]}, "")
    assert [text for text, _ in generate(llava, inputs, beams)] == llava.generate(inputs, max_new_tokens=8, num_beams=3)
