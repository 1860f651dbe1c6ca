"""Decoding on a pruned cache: lengths, positions, masks, beams, sampling, and generation against the reference."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import DynamicCache

from cropl.grid import Region, TokenGrid
from cropl.pruning import ILP, Dense, pruned
from cropl.pruning.request import region_mask
from tests.reference.masked import masked_generate
from tests.reference.tiny import FULL, IMAGE, PAD, SIDE, SMALL, WIDE, batch, pixels, prompt, tiny_llava

GREEDY = {"do_sample": False, "max_new_tokens": 6}


def kept_positions(ids_S: torch.Tensor, region: Region) -> torch.Tensor:
    keep_S = torch.ones(len(ids_S), dtype=torch.bool)
    keep_S[ids_S == IMAGE] = region_mask(region, TokenGrid.padded_square(SIDE, 1, 1))
    return keep_S


def lengths(cache: DynamicCache) -> list[int]:
    return [layer.keys.shape[-2] for layer in cache.layers]


@pytest.mark.parametrize("layer", [0, 1, 2, 4])
@pytest.mark.parametrize("kv_heads", [4, 2])
@torch.no_grad()
def test_cache_is_full_below_the_layer_and_shorter_from_it_on(layer, kv_heads) -> None:
    model = tiny_llava(4, kv_heads)
    ids = prompt(6)[None]
    pruned_length = 9 + SMALL.area
    with pruned(model, ILP(layer), regions=[SMALL]):
        out = model(input_ids=ids, pixel_values=pixels(1))
        assert lengths(out.past_key_values) == [73] * layer + [pruned_length] * (4 - layer)
        cache = DynamicCache(config=model.config)  # the caller's own cache is used, in place
        model(input_ids=ids, pixel_values=pixels(1), past_key_values=cache)
        model(input_ids=ids[:, -1:], past_key_values=cache)
        assert lengths(cache) == [74] * layer + [pruned_length + 1] * (4 - layer)


@pytest.mark.parametrize("layer", [0, 1, 3])
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("kv_heads", [4, 1])
@torch.no_grad()
def test_greedy_generation_is_the_references(layer, positions, kv_heads) -> None:
    model = tiny_llava(3, kv_heads)
    ids, pixel = prompt(6), pixels(1)
    features = model.get_image_features(pixel_values=pixel).pooler_output[0]
    expected = masked_generate(model, ids, features, kept_positions(ids, WIDE), layer, 6, positions == "compact")
    if layer == 3:
        assert expected == model.generate(input_ids=ids[None], pixel_values=pixel, **GREEDY)[0, len(ids) :].tolist()
    for use_cache in (True, False):
        with pruned(model, ILP(layer, positions), regions=[WIDE]):
            out = model.generate(input_ids=ids[None], pixel_values=pixel, use_cache=use_cache, **GREEDY)
        assert out[0, len(ids) :].tolist() == expected


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("give_positions", [False, True])
@torch.no_grad()
def test_decoding_step_is_a_longer_prefill(layer, positions, give_positions) -> None:
    # Positions continue from the unpruned length, whether the caller passes them or the model asks the cache.
    model = tiny_llava(4, 2)
    ids, pixel = torch.cat([prompt(6), torch.tensor([11, 12, 13])])[None], pixels(1)
    with pruned(model, ILP(layer, positions), regions=[SMALL]):
        whole = model(input_ids=ids, pixel_values=pixel).logits
        out = model(input_ids=ids[:, :-3], pixel_values=pixel)
        for step in (-3, -2, -1):
            at = torch.tensor([[ids.shape[1] + step]])
            given = {"position_ids": at} if give_positions else {}
            token = ids[:, step : ids.shape[1] + step + 1]
            out = model(input_ids=token, past_key_values=out.past_key_values, **given)
            torch.testing.assert_close(out.logits[:, -1], whole[:, step], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", [0, 1])
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize(("kv_heads", "attention"), [(4, "sdpa"), (2, "eager")])
@torch.no_grad()
def test_batched_generation_is_one_by_one(layer, positions, kv_heads, attention) -> None:
    dtype = torch.float64 if attention == "sdpa" else torch.float32
    model = tiny_llava(3, kv_heads, dtype, attention=attention)
    prompts = [prompt(5), prompt(11, before=1, seed=1), prompt(4, images=0, seed=2), prompt(2, seed=3)]
    regions, pixel = [SMALL, WIDE, None, FULL], pixels(3, dtype)
    images = [pixel[:1], pixel[1:2], None, pixel[2:]]
    options = GREEDY | {"output_logits": True, "return_dict_in_generate": True}
    with pruned(model, ILP(layer, positions), regions=regions):
        together = model.generate(**batch(prompts), pixel_values=pixel, **options)
    for row, (ids, image, region) in enumerate(zip(prompts, images, regions, strict=True)):
        with pruned(model, ILP(layer, positions), regions=[region]):
            given = {} if image is None else {"pixel_values": image}
            alone = model.generate(input_ids=ids[None], **given, **options)
        assert together.sequences[row, -6:].tolist() == alone.sequences[0, -6:].tolist()
        for a, b in zip(together.logits, alone.logits, strict=True):
            torch.testing.assert_close(a[row], b[0], atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("layer", [0, 1])
@torch.no_grad()
def test_beams_and_samples_repeat_the_regions(layer) -> None:
    model = tiny_llava(3, 2)
    prompts, pixel = [prompt(5), prompt(9, seed=1)], pixels(2)
    options = {"max_new_tokens": 5, "num_return_sequences": 2}
    for extra in ({"num_beams": 3, "do_sample": False}, {"num_beams": 2, "do_sample": True}):
        with pruned(model, ILP(layer), regions=[SMALL, WIDE]) as patch:
            torch.manual_seed(1)
            together = model.generate(**batch(prompts), pixel_values=pixel, **options, **extra)
        beams = extra["num_beams"]
        assert patch.kept_B.tolist() == [SMALL.area] * beams + [WIDE.area] * beams
        if not extra["do_sample"]:
            for row, region in enumerate([SMALL, WIDE]):
                with pruned(model, ILP(layer), regions=[region]):
                    alone = model.generate(
                        input_ids=prompts[row][None], pixel_values=pixel[row : row + 1], **options, **extra
                    )
                assert together[2 * row : 2 * row + 2, -5:].tolist() == alone[:, -5:].tolist()


@pytest.mark.parametrize("layer", [0, 2])
@torch.no_grad()
def test_beam_search_without_cache_agrees(layer) -> None:
    # Without a cache every step is a prefill of its own: no cache to reorder, no masks to carry on.
    model = tiny_llava(3)
    prompts, pixel = [prompt(5), prompt(9, seed=1)], pixels(2)
    results = []
    for use_cache in (True, False):
        with pruned(model, ILP(layer), regions=[SMALL, WIDE]):
            results.append(
                model.generate(
                    **batch(prompts),
                    pixel_values=pixel,
                    num_beams=3,
                    do_sample=False,
                    max_new_tokens=5,
                    use_cache=use_cache,
                )
            )
    assert torch.equal(*results)


@torch.no_grad()
def test_sampling_draws_from_the_pruned_distribution() -> None:
    model = tiny_llava(3)
    ids, pixel = prompt(5)[None], pixels(1)
    options = {"do_sample": True, "max_new_tokens": 1, "top_k": 0, "num_return_sequences": 4}
    with pruned(model, ILP(1), regions=[SMALL]):
        logits = model(input_ids=ids, pixel_values=pixel).logits[0, -1].float()
        torch.manual_seed(3)
        drawn = model.generate(input_ids=ids, pixel_values=pixel, **options)[:, -1]
    torch.manual_seed(3)
    assert torch.equal(drawn, torch.multinomial(logits.softmax(-1).repeat(4, 1), 1)[:, 0])


@torch.no_grad()
def test_each_prefill_prunes_anew_and_caches_interleave() -> None:
    model = tiny_llava(3)
    prompts, pixel = [prompt(5), prompt(9, seed=1)], pixels(2)
    with pruned(model, ILP(1), regions=[SMALL]) as patch:
        expected = [
            model.generate(input_ids=p[None], pixel_values=x[None], **GREEDY)[0, -6:].tolist()
            for p, x in zip(prompts, pixel, strict=True)
        ]
        assert patch.prefills == 2
        outs = [model(input_ids=p[None], pixel_values=x[None]) for p, x in zip(prompts, pixel, strict=True)]
        made: list[list[int]] = [[], []]
        for _ in range(6):
            for which in (0, 1):
                made[which].append(int(outs[which].logits[0, -1].argmax()))
                token = torch.tensor([[made[which][-1]]])
                outs[which] = model(input_ids=token, past_key_values=outs[which].past_key_values)
    assert made == expected


@torch.no_grad()
def test_cache_copies_and_row_operations_keep_their_books() -> None:
    model = tiny_llava(3, 2)
    prompts, pixel = [prompt(5), prompt(9, seed=1)], pixels(2)
    with pruned(model, ILP(0), regions=[SMALL, WIDE]):
        cache = model(**batch(prompts), pixel_values=pixel).past_key_values
        token = torch.tensor([[5], [7]])
        expected = model(input_ids=token, past_key_values=copy.deepcopy(cache)).logits
        repeated = copy.deepcopy(cache)
        repeated.batch_repeat_interleave(2)
        again = model(input_ids=token.repeat_interleave(2, 0), past_key_values=repeated).logits
        torch.testing.assert_close(again, expected.repeat_interleave(2, 0))
        swapped = copy.deepcopy(cache)
        swapped.reorder_cache(torch.tensor([1, 0]))
        torch.testing.assert_close(model(input_ids=token.flip(0), past_key_values=swapped).logits, expected.flip(0))
        single = copy.deepcopy(cache)
        single.batch_select_indices(torch.tensor([1]))
        torch.testing.assert_close(model(input_ids=token[1:], past_key_values=single).logits, expected[1:])
        model(input_ids=token, past_key_values=cache)
        cache.crop(-1)
        torch.testing.assert_close(model(input_ids=token, past_key_values=cache).logits, expected)
        cache.reset()
        fresh = model(**batch(prompts), pixel_values=pixel, past_key_values=cache).past_key_values
        torch.testing.assert_close(model(input_ids=token, past_key_values=fresh).logits, expected)


@torch.no_grad()
def test_dense_generates_what_the_model_does() -> None:
    model = tiny_llava(3)
    prompts, pixel = [prompt(5), prompt(9, seed=1)], pixels(2)
    plain = model.generate(**batch(prompts), pixel_values=pixel, **GREEDY)
    for method, request in ((Dense(), {}), (ILP(1), {"regions": [FULL, FULL]}), (ILP(3), {"regions": [SMALL, WIDE]})):
        with pruned(model, method, **request) as patch:
            assert torch.equal(model.generate(**batch(prompts), pixel_values=pixel, **GREEDY), plain)
        assert patch.visual_BL.tolist() == [[64, 64, 64]] * 2


@torch.no_grad()
def test_generation_with_encoded_images() -> None:
    model = tiny_llava(3)
    ids, pixel = prompt(5)[None], pixels(1)
    with pruned(model, ILP(1), regions=[SMALL]):
        expected = model.generate(input_ids=ids, pixel_values=pixel, **GREEDY)
        encoded = {"image": model.get_image_features(pixel_values=pixel)}
        assert torch.equal(model.generate(input_ids=ids, mm_encoder_outputs=encoded, **GREEDY), expected)
    assert not (expected == PAD).any()
