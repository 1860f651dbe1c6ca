"""Packed rows give the logits of separate rows, for both families."""

from __future__ import annotations

import pickle

import pytest
import torch

from cropl.data.packing import Document
from cropl.models.inputs import as_encoder_output
from cropl.models.packed import PackedPrompts, packed_logits, packed_losses, places
from cropl.models.vlm import load_vlm
from cropl.testbed.build import build_llava, build_qwen2_vl
from cropl.testbed.questions import questions
from cropl.testbed.scenes import scene

BUILD = {"llava": build_llava, "qwen2_vl": build_qwen2_vl}


@pytest.fixture(scope="module", params=["llava", "qwen2_vl"])
def checkpoint(request, tmp_path_factory):
    return str(BUILD[request.param](tmp_path_factory.mktemp(request.param), layers=2, width=64))


def test_packed_logits_are_those_of_separate_rows(checkpoint):
    """Pictures with several questions, conversations and texts in shared rows, against what inference computes."""
    vlm = load_vlm(checkpoint)
    prompts = PackedPrompts(vlm)
    scenes = [scene("val", 3), scene("val", 4)]
    pictures = [one.render() for one in scenes]
    talks = [[(q.text, q.answer) for q in questions(one)[:3]] for one in scenes]
    text = [("What colour is the square ?", "red"), ("How many are there ?", "two. three"), ("Yes or no?", "yes")]
    with torch.no_grad():
        features = vlm.encode_images(pictures)
        grids = [(g.rows, g.cols) for g in vlm.inputs(pictures, ["?", "?"]).grids]
        asked = [
            (None, [text]),
            (0, [[turn] for turn in talks[0]]),
            (None, [text[::-1]]),
            (1, [talks[1], talks[0][:1]]),
            (None, [text[:1], text[1:]]),
        ]
        documents = []
        for image, turns in asked:
            prefix, positions = prompts.prefix(None if image is None else grids[image])
            made = [prompts.turn(turn, image is not None) for turn in turns]
            documents.append(Document(prefix, positions, made))
        rows = [[0, 1, 2], [4, 3]]
        packed = prompts.pack([[documents[i] for i in row] for row in rows])
        logits, targets = packed_logits(vlm, packed, features)
        at = 0
        for image, turns in (asked[i] for row in rows for i in row):
            for turn in turns:
                alone, labels = separate(vlm, turn, None if image is None else (features[image], grids[image]))
                assert targets[at : at + len(labels)].tolist() == labels and len(labels) > 1
                torch.testing.assert_close(logits[at : at + len(labels)], alone, atol=1e-4, rtol=1e-4)
                at += len(labels)
    assert at == len(logits)
    row_T, turn_T = places(packed)
    assert row_T.diff().min() == 0 and turn_T[row_T == 0].unique().tolist() == [0, 1, 2, 3, 4]
    assert float(packed.padding) == pytest.approx(1 - sum(map(len, documents)) / packed.input_ids_BS.numel(), abs=1e-6)


def separate(vlm, turns, picture):
    """Logits and labels of one conversation by the model's own forward, with its own positions and causal mask."""
    ids, labels = vlm.conversation_ids(turns, picture is not None)
    if picture is not None:
        at = ids.index(vlm.image_token_id)
        count = len(picture[0]) - 1
        ids[at:at], labels[at:at] = [vlm.image_token_id] * count, [-100] * count
    ids_BS = torch.tensor([ids])
    inputs = {"input_ids": ids_BS}
    if picture is not None:
        inputs["mm_encoder_outputs"] = as_encoder_output([picture[0]])
    if vlm.merge > 1 and picture is not None:
        inputs["mm_token_type_ids"] = vlm.visual_mask(ids_BS).int()
        inputs["image_grid_thw"] = torch.tensor([[1, *(vlm.merge * side for side in picture[1])]])
    logits_SW = vlm.model(**inputs).logits[0]
    where = [i for i, label in enumerate(labels) if label != -100]
    return logits_SW[[i - 1 for i in where]], [labels[i] for i in where]


def test_no_document_sees_another(checkpoint):
    """Other neighbours, in another row of another length: not a bit of difference beyond rounding."""
    vlm = load_vlm(checkpoint, dtype=torch.float64)
    prompts = PackedPrompts(vlm)

    def text(word):
        return Document(*prompts.prefix(None), [prompts.turn([("What is it ?", word), ("And ?", "no")], False)])

    with torch.no_grad():
        alone, _ = packed_logits(vlm, prompts.pack([[text("red")]]), [])
        rows = prompts.pack([[text("blue")], [text("blue"), text("red"), text("one two three")]])
        among, targets = packed_logits(vlm, rows, [])
    row_T, turn_T = places(rows)
    chosen = (row_T == 1) & (turn_T == 1)
    assert targets[chosen].tolist() == [i for i in text("red").turns[0].labels if i != -100]
    torch.testing.assert_close(among[chosen], alone, atol=1e-10, rtol=1e-10)


def supervised(vlm):
    """Two rows with turns of several lengths."""
    prompts = PackedPrompts(vlm)

    def text(*answers):
        return Document(*prompts.prefix(None), [prompts.turn([("What is it ?", one)], False) for one in answers])

    return prompts.pack([[text("red", "blue three"), text("two")], [text("one two three")]])


def test_losses_are_those_of_the_logits(checkpoint):
    vlm = load_vlm(checkpoint)
    head, packed = vlm.model.get_output_embeddings(), supervised(vlm)
    logits, targets = packed_logits(vlm, packed, [])
    targets[::3] = logits.argmax(1)[::3]  # so that some answers are right
    packed.labels_BS[packed.turn_BS >= 0] = targets
    loss = torch.nn.functional.cross_entropy(logits, targets, reduction="none")
    (expected,) = torch.autograd.grad(loss.sum(), head.weight)
    losses, correct = packed_losses(vlm, packed, [])
    (found,) = torch.autograd.grad(losses.sum(), head.weight)
    torch.testing.assert_close(losses, loss, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    assert correct.tolist() == (logits.argmax(1) == targets).tolist() and 0 < correct.sum() < len(targets)
    assert len(losses) == len(places(packed)[0])


def test_rows_without_labels_have_no_losses_and_gradients_of_zero(checkpoint):
    """A process whose batch has nothing to learn takes part in the step all the same."""
    vlm = load_vlm(checkpoint)
    packed = supervised(vlm)
    packed.turn_BS[:] = -1
    losses, correct = packed_losses(vlm, packed, [])
    assert losses.shape == correct.shape == (0,)
    losses.sum().backward()
    grad = vlm.model.get_output_embeddings().weight.grad
    assert grad is not None and not grad.any()


def test_a_head_that_is_no_linear_layer_is_refused(checkpoint):
    vlm = load_vlm(checkpoint)
    vlm.model.set_output_embeddings(torch.nn.Sequential(vlm.model.get_output_embeddings()))
    with pytest.raises(ValueError, match="the vocabulary head is a Sequential"):
        packed_losses(vlm, supervised(vlm), [])


def test_features_are_counted(checkpoint):
    vlm = load_vlm(checkpoint)
    prompts = PackedPrompts(vlm)
    document = Document(*prompts.prefix((2, 3)), [prompts.turn([("What is it?", "red")])])
    with pytest.raises(ValueError, match="6 image placeholders, and there are 7"):
        packed_logits(vlm, prompts.pack([[document]]), [torch.zeros(7, 64)])


def test_attention_without_a_mask_of_pairs_is_refused(checkpoint):
    with pytest.raises(ValueError, match="'eager'.*'sdpa'"):
        PackedPrompts(load_vlm(checkpoint, attn_implementation="eager"))


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
    turn = prompts.turn([(question, "red")])
    assert prompts.image_id not in turn.ids
    inputs = vlm.inputs([scene("val", 3).render()], [question])
    assert vlm.visual_mask(inputs.tensors["input_ids"]).sum() == inputs.grids[0].num_tokens
    prompt = turn.ids[: next(i for i, label in enumerate(turn.labels) if label != -100)]
    assert inputs.tensors["input_ids"][0, -len(prompt) :].tolist() == prompt
