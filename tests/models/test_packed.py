"""Packed rows give the logits of separate rows, for both families."""

from __future__ import annotations

import pytest
import torch
from transformers import AutoModelForImageTextToText, AutoTokenizer

from cropl.models.packed import PackedPrompts, encode_pictures, packed_logits
from cropl.models.vlm import load_vlm
from cropl.testbed.build import build_llava, build_qwen2_vl
from cropl.testbed.questions import questions
from cropl.testbed.scenes import scene

BUILD = {"llava": build_llava, "qwen2_vl": build_qwen2_vl}


@pytest.fixture(scope="module", params=["llava", "qwen2_vl"])
def checkpoint(request, tmp_path_factory):
    return str(BUILD[request.param](tmp_path_factory.mktemp(request.param), layers=2, width=64))


def test_packed_logits_are_those_of_separate_rows(checkpoint):
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32).eval()
    prompts = PackedPrompts(model.config, AutoTokenizer.from_pretrained(checkpoint))
    vlm = load_vlm(checkpoint)
    scenes = [scene("val", 3), scene("val", 4)]
    pictures = [one.render() for one in scenes]
    asked = [questions(one)[:3] for one in scenes]
    with torch.no_grad():
        features = vlm.encode_images(pictures)
        grids = [(g.rows, g.cols) for g in vlm.inputs(pictures, ["?", "?"]).grids]
        rows = [[prompts.turn(q.text, q.answer) for q in qs] for qs in asked]
        packed = prompts.pack([prompts.prefix(grid) for grid in grids], rows)
        logits, targets = packed_logits(model, packed, features)
        at = 0
        for picture, qs, turns in zip(pictures, asked, rows):
            for question, turn in zip(qs, turns):
                one = vlm.inputs([picture], [question.text])
                alone = vlm.model(**one.kwargs()).logits[0, -1]
                assert targets[at : at + len(turn.answer)].tolist() == turn.answer
                torch.testing.assert_close(logits[at], alone, atol=1e-4, rtol=1e-4)
                at += len(turn.answer)
    assert at == len(logits)


def test_pictures_can_be_encoded_with_gradients_only_where_wanted(checkpoint):
    model = AutoModelForImageTextToText.from_pretrained(checkpoint, dtype=torch.float32)
    if model.config.model_type == "llava":
        model.model.vision_tower.requires_grad_(False)
        features = encode_pictures(model, [torch.randn(3, 192, 192)], [(24, 24)])
        trained = model.model.multi_modal_projector.linear_1.weight
    else:
        model.model.visual.requires_grad_(False)
        model.model.visual.merger.requires_grad_(True)
        features = encode_pictures(model, [torch.randn(64, 864)], [(8, 8)])
        trained = model.model.visual.merger.mlp[0].weight
    features[0].sum().backward()
    assert trained.grad is not None and trained.grad.abs().sum() > 0
