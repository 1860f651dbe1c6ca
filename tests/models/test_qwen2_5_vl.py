"""Qwen2.5-VL through the protocol: one picture is the same alone, in a batch, prepared, and in packed rows."""

from __future__ import annotations

import pytest
import torch

from cropl.data.packing import Document
from cropl.models.localizer import Localizer
from cropl.models.packed import PackedPrompts, packed_logits
from cropl.models.qwen2_5_vl import Qwen2_5_VLVLM
from cropl.models.vlm import load_vlm
from cropl.modules.instruction import InstructionModule
from cropl.testbed.build import build_qwen2_vl
from cropl.testbed.questions import questions
from cropl.testbed.samples import samples
from cropl.testbed.scenes import scene
from tests.models.test_packed import separate
from tests.reference.checkpoints import tiny_llava as tiny_llava
from tests.reference.qwen2_5_vl import build_qwen2_5_vl


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return str(build_qwen2_5_vl(tmp_path_factory.mktemp("qwen2_5_vl")))


@pytest.fixture(scope="module")
def vlm(checkpoint):
    return load_vlm(checkpoint, dtype=torch.float64)


def pictures(count=3):
    return [scene("val", number).render() for number in range(3, 3 + count)]


def test_the_family_is_found_and_no_other_taken(vlm, checkpoint, tmp_path):
    assert isinstance(vlm, Qwen2_5_VLVLM) and vlm.merge == 2
    other = build_qwen2_vl(tmp_path, layers=1, width=32)
    with pytest.raises(ValueError, match="'qwen2_vl' model, and a 'qwen2_5_vl' one is needed"):
        Qwen2_5_VLVLM.from_pretrained(str(other))
    small = load_vlm(checkpoint, max_pixels=20000)
    assert small.inputs(pictures(1), ["?"]).grids[0].num_tokens < vlm.inputs(pictures(1), ["?"]).grids[0].num_tokens


def test_other_families_are_no_localizers(tiny_llava):
    with pytest.raises(ValueError, match="'llava' model, and a 'qwen2_vl' or 'qwen2_5_vl' one is needed"):
        Localizer.from_pretrained(tiny_llava)


@torch.no_grad()
def test_windows_of_one_picture_know_nothing_of_another(vlm):
    some = pictures()
    assert len({picture.size for picture in some}) > 1
    together = vlm.encode_images(some)
    for picture, grid, features_VD in zip(some, vlm.inputs(some, ["?"] * 3).grids, together):
        torch.testing.assert_close(features_VD, vlm.encode_images([picture])[0], atol=1e-10, rtol=1e-10)
        assert len(features_VD) == grid.num_tokens
    prepared = [vlm.prepare(picture) for picture in some]
    found = vlm.encode_prepared([one.pixels for one in prepared], [one.patches for one in prepared])
    torch.testing.assert_close(found, together, atol=1e-5, rtol=1e-5)  # normalised in float32, here or there


@torch.no_grad()
def test_answers_are_the_same_in_a_batch_and_alone(vlm):
    some, asked = pictures(), ["What is it?", "How many shapes are there?", "Is there a red sign?"]
    inputs = vlm.inputs(some, asked)
    logits_BSW = vlm.model(**inputs.kwargs()).logits
    for row, (picture, question) in enumerate(zip(some, asked)):
        alone = vlm.inputs([picture], [question])
        last_W = vlm.model(**alone.kwargs()).logits[0, -1]
        torch.testing.assert_close(logits_BSW[row, -1], last_W, atol=1e-9, rtol=1e-9)
    features = vlm.encode_images(some)
    known = vlm.model(**vlm.inputs(some, asked, features).kwargs()).logits
    torch.testing.assert_close(known, logits_BSW, atol=1e-9, rtol=1e-9)


@torch.no_grad()
def test_packed_rows_are_separate_ones(vlm):
    prompts, some = PackedPrompts(vlm), pictures(2)
    talks = [[(q.text, q.answer) for q in questions(scene("val", number))[:3]] for number in (3, 4)]
    features = vlm.encode_images(some)
    grids = [(g.rows, g.cols) for g in vlm.inputs(some, ["?"] * 2).grids]
    documents = [
        Document(*prompts.prefix(grid), [prompts.turn([turn]) for turn in talk]) for grid, talk in zip(grids, talks)
    ]
    logits, targets = packed_logits(vlm, prompts.pack([documents]), features)
    at = 0
    for feature, grid, talk in zip(features, grids, talks):
        for turn in talk:
            alone, labels = separate(vlm, [turn], (feature, grid))
            assert targets[at : at + len(labels)].tolist() == labels
            torch.testing.assert_close(logits[at : at + len(labels)], alone, atol=1e-9, rtol=1e-9)
            at += len(labels)
    assert at == len(logits)


def test_it_trains_with_the_tower_frozen(checkpoint):
    module = InstructionModule(checkpoint).train()
    module.log = module.log_dict = lambda *args, **kwargs: None
    batch = module.collate(samples("train", 3))
    before = {name: p.clone() for name, p in module.named_parameters() if not p.requires_grad}
    optimizer = torch.optim.AdamW([p for p in module.parameters() if p.requires_grad], lr=3e-3)
    losses = []
    for step in range(6):
        optimizer.zero_grad()
        loss = module.training_step(batch, step)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.85 * losses[0]
    assert before and all(".visual." in name and ".merger." not in name for name in before)
    assert all(torch.equal(p, before[name]) for name, p in module.named_parameters() if name in before)
    merger = [p for name, p in module.named_parameters() if ".merger." in name]
    assert merger and all(p.grad is not None and p.grad.abs().sum() > 0 for p in merger if p.ndim > 1)
