"""LLaVA-NeXT behind the VLM protocol: inputs, encoded images, both protocols, prompts, pruning, loading, costs."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cropl.grid import Region
from cropl.metrics import cost
from cropl.models.llava_next import LlavaNextVLM
from cropl.models.vlm import load_vlm
from cropl.pruning import ILP, pruned
from cropl.tiling import covered
from tests.families import QUESTIONS, pictures
from tests.reference.tiny_next import PATCH, TILE, next_processor, tiny_llava_next

SIDE = TILE // PATCH


def test_inputs_are_those_of_the_processor(anyres) -> None:
    inputs = anyres.inputs(pictures(), QUESTIONS)
    prompts = [f"USER: <image>\n{question} ASSISTANT:" for question in QUESTIONS]
    made = anyres.processor(images=pictures(), text=prompts, padding=True, padding_side="left", return_tensors="pt")
    for key in ("input_ids", "attention_mask", "image_sizes"):
        assert torch.equal(inputs.tensors[key], made[key]), key
    assert torch.equal(inputs.tensors["pixel_values"], made["pixel_values"].double())
    assert anyres.visual_mask(made["input_ids"]).sum(1).tolist() == [grid.num_tokens for grid in inputs.grids]
    assert anyres.token_grids([(1, 1)] * 3, inputs.tensors) == inputs.grids  # the tensors know better
    with pytest.raises(ValueError, match="3 images in the batch and 2"):
        anyres.token_grids([(1, 1)] * 2, inputs.tensors)


@torch.no_grad()
def test_images_are_encoded_once(anyres) -> None:
    features, plain = anyres.encode_images(pictures()), anyres.inputs(pictures(), QUESTIONS)
    encoded = anyres.inputs(pictures(), QUESTIONS, features)
    assert "pixel_values" not in encoded.tensors
    torch.testing.assert_close(anyres.model(**encoded.kwargs()).logits, anyres.model(**plain.kwargs()).logits)
    expected = anyres.generate(plain, max_new_tokens=4)
    for extra in ({}, {"num_beams": 2}, {}):
        answers = anyres.generate(encoded, max_new_tokens=4, **extra)
    assert answers == expected
    prepared = [anyres.prepare(picture) for picture in pictures()]
    assert [one.tokens for one in prepared] == plain.grids
    again = anyres.encode_prepared([one.pixels for one in prepared], [one.patches for one in prepared])
    torch.testing.assert_close(again, features, atol=2e-5, rtol=2e-5)  # normalised in float32, here or there
    assert [anyres.token_shape(one.patches) for one in prepared] == [(1, len(feature)) for feature in features]


@torch.no_grad()
def test_the_fixed_protocol_is_five_crops_of_every_image_and_leaves_the_model_alone(anyres, fixed) -> None:
    before = {**vars(anyres.model), **vars(anyres.model.model)}
    inputs = fixed.inputs(pictures(), QUESTIONS)
    assert [grid.num_tokens for grid in inputs.grids] == [5 * SIDE**2] * 3 and inputs.grids[0].crops == 5
    features = fixed.encode_images(pictures())
    crops = fixed.prepare.pixels(pictures())
    for feature_VD, crop_PCHW in zip(features, crops, strict=True):
        states = anyres.tower(crop_PCHW.double(), output_hidden_states=True).hidden_states[-2][:, 1:]
        alone = anyres.projector(states)
        torch.testing.assert_close(feature_VD[: SIDE**2], alone[0])
        rows = feature_VD[SIDE**2 :].view(2 * SIDE, 2 * SIDE, -1)
        torch.testing.assert_close(rows[:SIDE, SIDE:].flatten(0, 1), alone[2])  # the upper right tile
        torch.testing.assert_close(rows[SIDE:, :SIDE].flatten(0, 1), alone[3])
    assert fixed.generate(inputs, max_new_tokens=4) == fixed.generate(
        fixed.inputs(pictures(), QUESTIONS, features), max_new_tokens=4
    )
    assert {**vars(anyres.model), **vars(anyres.model.model)}.keys() == before.keys()
    tokens = fixed.inputs(pictures(1), QUESTIONS[:1]).grids[0]
    assert sum(covered(tokens, Region(0, 0, 7, 7))) == 5 * SIDE**2 > sum(covered(tokens, Region(0, 0, 7, 6)))


def test_pruned_rows_are_those_of_one_by_one(anyres) -> None:
    wanted = [Region(0, 0, 3, 3), [Region(0, 0, 0, 0), Region(7, 7, 7, 7)], None]
    inputs = anyres.inputs(pictures(), QUESTIONS)
    with pruned(anyres, ILP(1), regions=wanted, grids=inputs.grids) as patch:
        together = anyres.generate(inputs, max_new_tokens=4)
    assert patch.kept_B.tolist() == [
        sum(covered(inputs.grids[0], wanted[0])), sum(covered(inputs.grids[1], wanted[1])), inputs.grids[2].num_tokens,
    ]  # fmt: skip
    sizes = inputs.image_sizes
    with pruned(anyres.model, ILP(1), regions=wanted, image_sizes=sizes):
        assert anyres.generate(inputs, max_new_tokens=4) == together
    for row in range(3):
        alone = anyres.inputs(pictures()[row : row + 1], QUESTIONS[row : row + 1])
        with pruned(anyres, ILP(1), regions=wanted[row : row + 1], grids=alone.grids):
            assert anyres.generate(alone, max_new_tokens=4) == together[row : row + 1]


MISTRAL = (
    "{% for message in messages %}[INST] {% for part in message['content'] %}{% if part['type'] == 'image' %}<image>\n"
    "{% else %}{{ part['text'] }}{% endif %}{% endfor %} [/INST]{% endfor %}"
)


def test_prompts_are_the_checkpoints_own(anyres) -> None:
    mistral = LlavaNextVLM(anyres.model, next_processor(MISTRAL))
    assert mistral._prompt("Read <image> it .") == "[INST] <image>\nRead < image > it . [/INST]"
    assert mistral._prompt("?") == LlavaNextVLM(anyres.model, next_processor("<s>" + MISTRAL))._prompt("?")
    assert anyres._prompt("Read it .") == "USER: <image>\nRead it . ASSISTANT:"
    assert LlavaNextVLM(anyres.model, next_processor(MISTRAL), system=True)._prompt("?").startswith("A chat between")
    with pytest.raises(NotImplementedError, match="vicuna"):
        mistral.conversation([("Read it .", "sign")], True)
    ids, labels = anyres.conversation_ids([("Read it .", "sign")], True)
    prompt = anyres.prompt_ids("Read it .")
    assert ids[: len(prompt)] == prompt and any(one >= 0 for one in labels)


def test_what_does_not_fit(anyres) -> None:
    with pytest.raises(ValueError, match="must be one of anyres, fixed"):
        LlavaNextVLM(anyres.model, protocol="2880")  # type: ignore[arg-type]
    other = next_processor()
    other.image_processor.image_grid_pinpoints = [[64, 64]]
    with pytest.raises(ValueError, match="pinpoints"):
        LlavaNextVLM(anyres.model, other)
    other = next_processor()
    other.image_token_id = 7
    with pytest.raises(ValueError, match="same checkpoint"):
        LlavaNextVLM(anyres.model, other)
    other = next_processor()
    other.image_processor.crop_size = other.image_processor.size = {"height": 16, "width": 16}
    with pytest.raises(ValueError, match="tiles of"):
        LlavaNextVLM(anyres.model, other).inputs(pictures(1), QUESTIONS[:1])
    full = tiny_llava_next(2)
    full.config.vision_feature_select_strategy = "full"
    with pytest.raises(ValueError, match="only 'default'"):
        LlavaNextVLM(full)


def test_loading(tmp_path) -> None:
    tiny_llava_next(2, 2, torch.float32).save_pretrained(tmp_path)
    next_processor().save_pretrained(tmp_path)
    loaded = load_vlm(str(tmp_path), device="cpu", protocol="fixed")
    assert isinstance(loaded, LlavaNextVLM) and loaded.protocol == "fixed" and not loaded.system
    assert load_vlm(str(tmp_path), device="cpu").protocol == "anyres"
    built = []

    class Counted(LlavaNextVLM):
        def __init__(self, *args, **options):
            built.append(options)
            super().__init__(*args, **options)

    assert Counted.from_pretrained(str(tmp_path), device="cpu", system=True, protocol="fixed").system
    assert built == [{"protocol": "fixed"}]


@torch.no_grad()
def test_vision_flops_against_counts() -> None:
    vlm = LlavaNextVLM(tiny_llava_next(2, 2, torch.float32, attention="eager"), next_processor())
    for picture in pictures():
        tokens = vlm.token_map(*picture.size)
        with FlopCounterMode(display=False) as counter:
            vlm.encode_images([picture])
        assert counter.get_total_flops() == cost.vision_flops(vlm.model.config, crops=tokens.crops)
