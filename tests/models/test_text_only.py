"""Questions without an image, in every family that can write them."""

from __future__ import annotations

import pytest
import torch

from cropl.models.llava import LlavaVLM
from cropl.models.text_only import text_inputs
from tests.families import FAMILIES

QUESTIONS = ["What colour is the sign ?", "Read it .", "How many ?"]
ABLE = ["llava", "llava_next", "qwen2_vl", "qwen2_5_vl"]


@pytest.mark.parametrize("name", ABLE)
def test_a_batch_answers_as_one_by_one(name):
    vlm = FAMILIES[name]()
    together = vlm.generate(text_inputs(vlm, QUESTIONS), max_new_tokens=6)
    assert together == [vlm.generate(text_inputs(vlm, [one]), max_new_tokens=6)[0] for one in QUESTIONS]
    assert len(set(together)) > 1


@pytest.mark.parametrize("name", ABLE)
def test_nothing_stands_where_the_image_would_be(name):
    vlm = FAMILIES[name]()
    inputs = text_inputs(vlm, QUESTIONS[:1])
    ids = inputs.tensors["input_ids"][0]
    assert not vlm.visual_mask(ids).any() and not inputs.grids
    with_image = vlm.prompt_ids(QUESTIONS[0])
    start = len([1 for a, b in zip(with_image, ids.tolist()) if a == b])
    assert start and ids.tolist()[-3:] == with_image[-3:]


def test_llavas_prompt_is_word_for_word_the_one_without_an_image():
    vlm = FAMILIES["llava"]()
    vlm = LlavaVLM(vlm.model, vlm.processor, system=True)
    said = vlm.tokenizer.decode(text_inputs(vlm, ["How many ?"]).tensors["input_ids"][0], skip_special_tokens=False)
    expected = vlm.tokenizer.decode(vlm.tokenizer(
        "A chat between a curious user and an artificial intelligence assistant. The assistant gives helpful, "
        "detailed, and polite answers to the user's questions. USER: How many ? ASSISTANT:"
    )["input_ids"])  # fmt: skip
    assert said == expected


def test_a_family_that_cannot_says_so():
    vlm = FAMILIES["internvl"](dtype=torch.float32)
    with pytest.raises(NotImplementedError, match="InternVLVLM"):
        text_inputs(vlm, QUESTIONS)
    with pytest.raises(ValueError, match="no questions"):
        text_inputs(vlm, [])
