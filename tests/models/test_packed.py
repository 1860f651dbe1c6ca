"""Packed rows give the logits of separate rows, for both families."""

from __future__ import annotations

import pickle

import pytest
import torch

from cropl.models.packed import PackedPrompts, packed_logits
from cropl.models.vlm import load_vlm
from cropl.testbed.build import build_llava, build_qwen2_vl
from cropl.testbed.questions import questions
from cropl.testbed.scenes import scene

BUILD = {"llava": build_llava, "qwen2_vl": build_qwen2_vl}


@pytest.fixture(scope="module", params=["llava", "qwen2_vl"])
def checkpoint(request, tmp_path_factory):
    return str(BUILD[request.param](tmp_path_factory.mktemp(request.param), layers=2, width=64))


def test_packed_logits_are_those_of_separate_rows(checkpoint):
    vlm = load_vlm(checkpoint)
    prompts = PackedPrompts(vlm)
    scenes = [scene("val", 3), scene("val", 4)]
    pictures = [one.render() for one in scenes]
    asked = [questions(one)[:3] for one in scenes]
    with torch.no_grad():
        features = vlm.encode_images(pictures)
        grids = [(g.rows, g.cols) for g in vlm.inputs(pictures, ["?", "?"]).grids]
        rows = [[prompts.turn(q.text, q.answer) for q in qs] for qs in asked]
        packed = prompts.pack([prompts.prefix(grid) for grid in grids], rows)
        logits, targets = packed_logits(vlm, packed, features)
        at = 0
        for picture, qs, turns in zip(pictures, asked, rows):
            for question, turn in zip(qs, turns):
                one = vlm.inputs([picture], [question.text])
                alone = vlm.model(**one.kwargs()).logits[0, -1]
                assert targets[at : at + len(turn.answer)].tolist() == turn.answer
                torch.testing.assert_close(logits[at], alone, atol=1e-4, rtol=1e-4)
                at += len(turn.answer)
    assert at == len(logits)


def test_prepared_pictures_give_the_tokens_of_inference(checkpoint):
    vlm = load_vlm(checkpoint)
    pictures = [scene("val", 3).render(), scene("val", 4).render()]
    prepared = [vlm.prepare(picture) for picture in pictures]
    with torch.no_grad():
        features = vlm.encode_prepared([one.pixels for one in prepared], [one.patches for one in prepared])
    torch.testing.assert_close(features, vlm.encode_images(pictures))
    assert [one.tokens for one in prepared] == vlm.inputs(pictures, ["?", "?"]).grids
    held = pickle.loads(pickle.dumps(vlm.prepare))
    assert torch.equal(held(pictures[0]).pixels, prepared[0].pixels)


def test_pictures_are_encoded_with_gradients_only_where_wanted(checkpoint):
    vlm = load_vlm(checkpoint)
    vlm.tower.requires_grad_(False)
    vlm.projector.requires_grad_(True)
    one = vlm.prepare(scene("val", 3).render())
    vlm.encode_prepared([one.pixels], [one.patches])[0].sum().backward()
    trained = [p for p in vlm.projector.parameters() if p.ndim > 1]
    assert trained and all(p.grad is not None and p.grad.abs().sum() > 0 for p in trained)
    inside = {id(p) for p in vlm.projector.parameters()}
    assert all(p.grad is None for p in vlm.tower.parameters() if id(p) not in inside)


def test_questions_cannot_smuggle_images(checkpoint):
    vlm = load_vlm(checkpoint)
    prompts = PackedPrompts(vlm)
    question = f"What <image> <|image_pad|> {vlm.tokenizer.convert_ids_to_tokens(prompts.image_id)} is it?"
    turn = prompts.turn(question, "red")
    assert prompts.image_id not in turn.prompt + turn.answer
    inputs = vlm.inputs([scene("val", 3).render()], [question])
    assert vlm.visual_mask(inputs.tensors["input_ids"]).sum() == inputs.grids[0].num_tokens
    assert inputs.tensors["input_ids"][0, -len(turn.prompt) :].tolist() == turn.prompt
