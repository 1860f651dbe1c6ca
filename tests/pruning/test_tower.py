"""Methods that look into the vision tower, in a model: against references, in any batch, from pixels and features."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch

from cropl.models.llava import LlavaVLM
from cropl.models.vlm import as_vlm
from cropl.pruning import FastV, NotSupportedError, PruningError, VisionZip, VisPruner, pruned
from cropl.pruning.tower import Reduced, TowerMethod
from tests.families import FAMILIES, QUESTIONS, pictures, under
from tests.pruning.test_restore import hooks
from tests.reference import tower
from tests.reference.tiny import IMAGE, batch, pixels, prompt, tiny_llava

GREEDY = {"do_sample": False, "max_new_tokens": 5}
TIGHT = {"atol": 1e-5, "rtol": 1e-5}


TOWERS = ["llava", "llava_next", "qwen2_vl", "qwen2_5_vl"]
"""The families that show what their towers attend to."""
built = cache(lambda family: FAMILIES[family]())
"""A model of each family; tests leave it as it was."""


def feed(model: Any, ids_S: torch.Tensor, token_MD: torch.Tensor, new: int = 5) -> tuple[torch.Tensor, list[int]]:
    """Logits (S', C) of the plain language model over text embeddings and these tokens, and its greedy answer."""
    text = model.get_input_embeddings()(ids_S)
    place = (ids_S == IMAGE).nonzero()[:, 0]
    embeds = torch.cat([text[: place[0]], token_MD, text[place[-1] + 1 :]])
    first, out = None, []
    for _ in range(new):
        hidden = model.model.language_model(inputs_embeds=embeds[None], use_cache=False).last_hidden_state
        logits = model.lm_head(hidden[0])
        first = logits if first is None else first
        out.append(int(logits[-1].argmax()))
        embeds = torch.cat([embeds, model.get_input_embeddings()(torch.tensor(out[-1:]))])
    return first, out


def reference(model: Any, pixel: torch.Tensor, name: str) -> torch.Tensor:
    if name == "visionzip":
        return tower.zipped(model, pixel, 16, 3)  # 16 / 6.4 = 2.5, rounded up
    inside = tower.clip_inside(model, pixel)
    return tower.projected(model, inside.x_VW[tower.vispruner(inside, 16, 0.25)])


METHODS = {"visionzip": lambda: VisionZip(16), "vispruner": lambda: VisPruner(16, 0.25)}


@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_logits_and_answers_are_those_of_a_model_fed_with_the_references_tokens(name) -> None:
    model = tiny_llava(3, 2)
    ids, pixel = prompt(6), pixels(1)
    logits, answer = feed(model, ids, reference(model, pixel[0], name))
    with pruned(model, METHODS[name]()) as patch:
        out = model(input_ids=ids[None], pixel_values=pixel)
        for use_cache in (True, False):
            said = model.generate(input_ids=ids[None], pixel_values=pixel, use_cache=use_cache, **GREEDY)
            assert said[0, len(ids) :].tolist() == answer
    torch.testing.assert_close(out.logits[0], logits, **TIGHT)
    assert patch.kept_B.tolist() == [16] and METHODS[name]().name == name
    assert [layer.keys.shape[-2] for layer in out.past_key_values.layers] == [9 + 16] * 3


@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_a_row_does_not_depend_on_its_batch_and_beams_are_its_own(name) -> None:
    model = tiny_llava(3, 2)
    prompts = [prompt(5), prompt(4, images=0, seed=2), prompt(11, before=1, seed=1)]
    pixel = pixels(2)
    with pruned(model, METHODS[name]()) as patch:
        together = model(**batch(prompts), pixel_values=pixel).logits
        real_BM = patch.survivors_BM >= 0
        assert patch.kept_B.tolist() == [16, 0, 16]
        said = model.generate(**batch(prompts), pixel_values=pixel, **GREEDY)
        beams = model.generate(**batch(prompts), pixel_values=pixel, num_beams=2, num_return_sequences=2, **GREEDY)
    plain = model(input_ids=prompts[1][None]).logits[0]
    torch.testing.assert_close(together[1, real_BM[1]], plain, **TIGHT)
    for row, image in ((0, 0), (2, 1)):
        logits, answer = feed(model, prompts[row], reference(model, pixel[image], name))
        torch.testing.assert_close(together[row, real_BM[row]], logits, **TIGHT)
        assert said[row, -5:].tolist() == answer
        with pruned(model, METHODS[name]()):
            alone = model.generate(
                input_ids=prompts[row][None], pixel_values=pixel[image][None], num_beams=2, num_return_sequences=2,
                **GREEDY,
            )  # fmt: skip
        assert torch.equal(beams[2 * row : 2 * row + 2, -5:], alone[:, -5:])


@pytest.mark.parametrize("family", TOWERS)
@torch.no_grad()
def test_features_encoded_in_the_context_do_as_pixels_do(family) -> None:
    vlm = built(family)
    images = pictures(3)
    for method in (VisionZip(0.25), VisPruner(0.25)):
        with pruned(vlm, method) as patch:
            expected = vlm.model(**vlm.inputs(images, QUESTIONS).kwargs()).logits
            features = [*vlm.encode_images(images[:2]), *vlm.encode_images(images[2:])]
            inputs = vlm.inputs(images, QUESTIONS, features)
            torch.testing.assert_close(vlm.model(**inputs.kwargs()).logits, expected, **TIGHT)
            assert patch.kept_B.tolist() == [method.count(grid) for grid in inputs.grids]
            # Other questions, in another order, and several about one image.
            order = [2, 0, 0]
            asked = vlm.inputs([images[i] for i in order], QUESTIONS, [features[i] for i in order])
            answers = vlm.generate(asked, max_new_tokens=4)
            beams = vlm.generate(asked, max_new_tokens=4, num_beams=2)
        for row, i in enumerate(order):
            with pruned(vlm, method):
                alone = vlm.inputs([images[i]], [QUESTIONS[row]])
                assert [answers[row], beams[row]] == [
                    vlm.generate(alone, max_new_tokens=4, num_beams=count)[0] for count in (1, 2)
                ]


@pytest.mark.parametrize("family", TOWERS)
@torch.no_grad()
def test_features_from_elsewhere_are_refused(family) -> None:
    vlm, images = built(family), pictures(2)
    before = vlm.encode_images(images)
    with pruned(vlm, VisionZip(0.5)):
        with pytest.raises(PruningError, match="row 0 did not run through the vision tower"):
            vlm.generate(vlm.inputs(images, QUESTIONS[:2], before))
        inside = vlm.encode_images(images)
        changed = [inside[0], inside[1] + 1]
        with pytest.raises(PruningError, match="row 1 did not run"):
            vlm.generate(vlm.inputs(images, QUESTIONS[:2], changed))
        # Other images behind a forward: those before are forgotten. Alone, the first may differ in its last bits.
        vlm.encode_images(images[:1])
        with pytest.raises(PruningError, match="row [01] did not run"):
            vlm.generate(vlm.inputs(images, QUESTIONS[:2], inside))


@pytest.mark.parametrize("family", TOWERS)
@torch.no_grad()
def test_nothing_is_left_behind_and_other_methods_look_at_no_tower(family) -> None:
    vlm, images = built(family), pictures(2)
    inputs = vlm.inputs(images, QUESTIONS[:2])
    plain, before = vlm.model(**inputs.kwargs()).logits, hooks(vlm.model)
    attributes = {id(module): set(vars(module)) for module in vlm.model.modules()}
    with pruned(vlm, VisionZip(8)) as patch:
        vlm.model(**inputs.kwargs())
        assert patch.looks_into_tower and len(patch._method._seen._images) == 2
    assert not patch._method._seen._images  # however long the record of the context is kept
    with pytest.raises(KeyError, match="mine"), pruned(vlm, VisPruner(8)):
        raise KeyError("mine")
    in_tower = hooks(vlm.tower)
    with pruned(vlm, FastV(8, 1)):
        assert hooks(vlm.tower) == in_tower
    assert hooks(vlm.model) == before
    assert {id(module): set(vars(module)) for module in vlm.model.modules()} == attributes
    assert torch.equal(vlm.model(**inputs.kwargs()).logits, plain)


@pytest.mark.parametrize("family", sorted({*TOWERS} - {"llava_next"}))  # whose newlines are no tower's
@torch.no_grad()
def test_keeping_all_is_dense(family) -> None:
    vlm, images = built(family), pictures(3)
    inputs = vlm.inputs(images, QUESTIONS)
    plain = vlm.model(**inputs.kwargs()).logits
    methods = [VisPruner(1.0)] if vlm.class_token else [VisPruner(1.0), VisionZip(1.0, contextual=0)]
    for method in methods:
        with pruned(vlm, method) as patch:
            assert torch.equal(vlm.model(**inputs.kwargs()).logits, plain)
        assert torch.equal(patch.kept_B, patch.visual_B)


@pytest.mark.parametrize("protocol", ["anyres", "fixed"])
@torch.no_grad()
def test_crops_are_reduced_one_by_one(protocol) -> None:
    vlm = under(protocol, built("llava_next"))
    for image in pictures(3):
        crops = vlm.prepare.pixels([image])[0].double()
        parts = [tower.zipped(vlm.model, crop, 16, 3) for crop in crops]
        inputs = vlm.inputs([image], QUESTIONS[:1])
        ids = inputs.tensors["input_ids"][0]
        logits, _ = feed(vlm.model, ids, torch.cat(parts), new=1)
        with pruned(vlm, VisionZip(16 * len(crops))) as patch:
            if protocol == "fixed":  # which hands features over at once
                assert len(crops) == 5
                inputs = vlm.inputs([image], QUESTIONS[:1])
            out = vlm.model(**inputs.kwargs())
        torch.testing.assert_close(out.logits[0], logits, **TIGHT)
        assert patch.kept_B.tolist() == [16 * len(crops)]
    with pytest.raises(ValueError, match="fewer than the [2-5] crops"), pruned(vlm, VisionZip(1)):
        vlm.generate(vlm.inputs([image], QUESTIONS[:1]))


@pytest.mark.parametrize(("family", "block"), [("qwen2_vl", -2), ("qwen2_5_vl", 3)])
@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_without_a_class_token_tokens_stand_in_their_own_places(family, block, name) -> None:
    vlm, [image] = built(family), pictures(1)
    inside, places = tower.qwen_inside(vlm, image, block)
    at = torch.tensor(places)  # the tower may sort its tokens by window
    for field in ("x_VW", "attention_HV", "key_VE"):
        value = getattr(inside, field)
        setattr(inside, field, value[:, at.argsort()] if field == "attention_HV" else value[at.argsort()])
    if name == "visionzip":
        dominant, merged, targets = tower.visionzip(inside, 16, 3)
        tokens = {i: inside.x_VW[i] for i in dominant} | dict(zip(targets, merged, strict=True))
    else:
        tokens = {i: inside.x_VW[i] for i in tower.vispruner(inside, 16, 0.25)}
    assert len(tokens) == 16
    inputs = vlm.inputs([image], QUESTIONS[:1])
    ids = inputs.tensors["input_ids"][0]
    visual = (ids == vlm.image_token_id).nonzero()[:, 0].tolist()
    stays = [p for p in range(len(ids)) if p not in visual or p - visual[0] in tokens]
    text = vlm.model.get_input_embeddings()(ids)
    embeds = torch.stack([tokens[p - visual[0]] if p in visual else text[p] for p in stays])
    position, _ = vlm.model.model.get_rope_index(
        ids[None], inputs.tensors["mm_token_type_ids"], image_grid_thw=inputs.tensors["image_grid_thw"]
    )
    hidden = vlm.decoder(
        inputs_embeds=embeds[None],
        position_ids=position[:, :, stays],
        attention_mask={"full_attention": None, "sliding_attention": None},
        use_cache=False,
    ).last_hidden_state
    with pruned(vlm, METHODS[name]()):
        out = vlm.model(**inputs.kwargs())
    torch.testing.assert_close(out.logits[0], vlm.model.lm_head(hidden[0]), **TIGHT)


def test_without_a_class_token_methods_must_say_where_tokens_stand() -> None:
    class Mean(TowerMethod):
        """One token for the whole image."""

        name = "mean"

        def reduce(self, view, count):
            return Reduced(view.token_VD.mean(0, keepdim=True))

    vlm, [image] = built("qwen2_vl"), pictures(1)
    with pytest.raises(NotSupportedError, match="Mean does not say where its tokens stand"), pruned(vlm, Mean(1)):
        vlm.model(**vlm.inputs([image], QUESTIONS[:1]).kwargs())
    with pruned(built("llava"), Mean(1)) as patch:
        built("llava").model(**built("llava").inputs([image], QUESTIONS[:1]).kwargs())
    assert patch.kept_B.tolist() == [1]


@pytest.mark.parametrize("family", sorted({*FAMILIES} - {*TOWERS}))
def test_other_families_say_so(family) -> None:
    vlm = built(family)
    with pytest.raises(NotSupportedError, match="VisionZip is not supported here"), pruned(vlm, VisionZip(8)):
        pass


@torch.no_grad()
def test_what_cannot_be_is_named() -> None:
    model = tiny_llava(3, 2)
    inputs = {"input_ids": prompt(5)[None], "pixel_values": pixels(1)}
    with pytest.raises(ValueError, match="more than the 64"), pruned(model, VisionZip(65)):
        model(**inputs)
    model.config.vision_feature_layer = [-2, -1]
    with pytest.raises(ValueError, match="the output of one layer"), pruned(model, VisionZip(8)):
        pass
    model.config.vision_feature_layer = -2

    class Hidden(LlavaVLM):
        """A family whose tower nobody looks into."""

        def watch_tower(self, record):
            return super(LlavaVLM, self).watch_tower(record)

    hidden = Hidden(model)
    with pytest.raises(NotSupportedError, match="VisionZip is not supported.*Hidden"), pruned(hidden, VisionZip(8)):
        pass
    with pytest.raises(PruningError, match="use it in pruned"):
        VisionZip(8).compress([torch.zeros(3, 4)], [], [])
    with pruned(model, VisionZip(8)):  # and the model may be pruned still
        assert model(**inputs).logits.shape[1] == 8 + 8
    two = {"input_ids": prompt(5, images=2)[None], "pixel_values": pixels(2)}
    with pytest.raises(PruningError, match="one image per row"), pruned(model, VisionZip(8)):
        model(**two)


def test_gradients_reach_the_projector() -> None:
    model = tiny_llava(3, 2)
    model.model.vision_tower.requires_grad_(False)
    ids = prompt(5)[None]
    for method in (VisionZip(8), VisPruner(8)):
        model.zero_grad()
        with pruned(model, method):
            model(input_ids=ids, pixel_values=pixels(1), labels=ids.masked_fill(ids == IMAGE, -100)).loss.backward()
        assert model.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0


def test_models_are_watched_through_their_family() -> None:
    vlm = as_vlm(tiny_llava(3, 2))
    seen = []
    watch = vlm.watch_tower(seen.append)
    with torch.no_grad():
        vlm.model.get_image_features(pixel_values=pixels(2))
        watch.remove()
        vlm.model.get_image_features(pixel_values=pixels(1))
    assert [len(image.views) for image in seen] == [1, 1]
