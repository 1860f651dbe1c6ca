"""Pruning under M-RoPE (Qwen2-VL, Qwen2.5-VL) against an independent reference; rope deltas, grids, videos."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import DynamicCache

from cropl.grid import Region
from cropl.models.attention import watched
from cropl.models.vlm import VLM
from cropl.pruning import (
    ILP,
    PLC,
    Dense,
    FastV,
    InnerLLM,
    NotSupportedError,
    PruningError,
    PyramidDrop,
    Schedule,
    SparseVLM,
    pruned,
)
from cropl.pruning.request import region_mask
from tests.families import FAMILIES, QUESTIONS, pictures
from tests.pruning.test_plc import compressor
from tests.reference import mrope, staged

SMALL, WIDE, FULL = Region(2, 3, 4, 4), Region(0, 1, 7, 2), Region.full()
QWENS = ["qwen2_vl", "qwen2_5_vl"]


@pytest.fixture(scope="module", params=QWENS)
def vlm(request) -> VLM:
    return FAMILIES[request.param](1)


@pytest.fixture(scope="module")
def qwen() -> VLM:
    return FAMILIES["qwen2_vl"](2)


def one(vlm: VLM, number: int = 0) -> tuple[dict[str, Any], Tensor, tuple[int, int]]:
    """Arguments of a forward with one picture, its visual tokens and the (rows, columns) of its grid."""
    image = pictures()[number]
    inputs = vlm.inputs([image], [QUESTIONS[number]])
    with torch.no_grad():
        [features] = vlm.encode_images([image])
    return inputs.kwargs(), features, (inputs.grids[0].rows, inputs.grids[0].cols)


def by_region(vlm: VLM, layer: int, region: Region, kwargs: dict[str, Any]) -> staged.Decide:
    """The reference's rule: the tokens of a region stay."""
    [grid] = vlm.token_grids([(1, 1)], kwargs)
    kept = region_mask(region, grid).nonzero()[:, 0].tolist()

    def decide(index: int, living: staged.Living) -> tuple[list[int], None] | None:
        return ([living.visual[i] for i in kept], None) if index == layer else None

    return decide


@torch.no_grad()
def test_the_reference_is_the_model_and_watched_rows_are_its_attention(vlm) -> None:
    kwargs, features, grid = one(vlm)
    expected = vlm.model(**kwargs).logits[0]
    ids = kwargs["input_ids"][0]
    actual = mrope.logits(vlm.model, ids, features, [grid], lambda index, living: None, False)
    torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-5)

    kernel = vlm.model.config.get_text_config()._attn_implementation
    vlm.model.set_attn_implementation("eager")
    try:
        with watched(vlm.decoder, range(vlm.num_layers)) as seen:
            real = vlm.model(**kwargs, output_attentions=True).attentions
    finally:
        vlm.model.set_attn_implementation(kernel)
    position_BT = torch.tensor([[len(ids) - 1, len(ids) // 2]])
    for layer, attention_BHSS in enumerate(real):
        rows_BTS = seen[layer].mean(position_BT, torch.ones(1, len(ids), dtype=torch.bool))
        torch.testing.assert_close(rows_BTS[0], attention_BHSS[0].mean(0)[position_BT[0]].float(), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("layer", [0, 1, 3])
@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_regions_are_those_of_the_reference(vlm, layer, positions, use_cache) -> None:
    for number, region in ((0, SMALL), (1, WIDE)):
        kwargs, features, grid = one(vlm, number)
        decide = by_region(vlm, layer, region, kwargs)
        expected = mrope.logits(vlm.model, kwargs["input_ids"][0], features, [grid], decide, positions == "compact")
        with pruned(vlm, ILP(layer, positions), regions=[region]):
            out = vlm.model(**kwargs, use_cache=use_cache)
        torch.testing.assert_close(out.logits[0], expected, atol=1e-5, rtol=1e-5)


CASES: dict[str, tuple[Callable[[], InnerLLM], Callable[[int], staged.Decide]]] = {
    "fastv": (lambda: FastV(10, 2), lambda total: staged.fastv(2, 10)),
    "fastv-compact": (lambda: FastV(7, 1, "compact"), lambda total: staged.fastv(1, 7)),
    "pyramiddrop": (lambda: PyramidDrop(0.5, (1, 2, 3)), lambda total: staged.pyramiddrop([1, 2, 3], 0.5, total)),
    "pyramiddrop-original": (
        lambda: PyramidDrop(0.4, (0, 2), "original"), lambda total: staged.pyramiddrop([0, 2], 0.4, total),
    ),
    "sparsevlm": (lambda: SparseVLM((24, 8), (0, 2)), lambda total: staged.sparsevlm([0, 2], [24, 8], 0.3)),
    "sparsevlm+": (
        lambda: SparseVLM((20, 12, 5), (0, 1, 2), 0), lambda total: staged.sparsevlm([0, 1, 2], [20, 12, 5], 0),
    ),
    "sparsevlm-much": (lambda: SparseVLM((8,), (1,), 0.9), lambda total: staged.sparsevlm([1], [8], 0.9)),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_rankings_are_those_of_the_reference(vlm, case) -> None:
    make, rule = CASES[case]
    kwargs, features, grid = one(vlm)
    method, compact = make(), make().positions == "compact"
    merges = isinstance(method, SparseVLM) and method.recycle > 0
    ids = kwargs["input_ids"][0]
    expected = mrope.logits(vlm.model, ids, features, [grid], rule(len(features)), compact, merges)
    with pruned(vlm, method):
        out = vlm.model(**kwargs)
    assert out.logits.shape[1] == len(expected) < len(ids)
    torch.testing.assert_close(out.logits[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("positions", ["original", "compact"])
@torch.no_grad()
def test_greedy_generation_is_the_references(qwen, layer, positions) -> None:
    kwargs, features, grid = one(qwen, 1)
    decide = by_region(qwen, layer, WIDE, kwargs)
    ids = kwargs["input_ids"][0]
    for _ in range(5):  # everything anew in each step
        found = mrope.logits(qwen.model, ids, features, [grid], decide, positions == "compact")[-1]
        found[qwen.image_token_id] = float("-inf")
        ids = torch.cat([ids, found.argmax()[None]])
    for use_cache in (True, False):
        with pruned(qwen, ILP(layer, positions), regions=[WIDE]) as patch:
            out = qwen.model.generate(
                **kwargs, use_cache=use_cache, max_new_tokens=5, do_sample=False, suppress_tokens=[qwen.image_token_id]
            )
        assert torch.equal(out[0], ids) and patch.prefills == (1 if use_cache else 5)


@torch.no_grad()
def test_compact_is_the_model_that_is_shown_the_regions_tokens_alone(qwen) -> None:
    """What compact positions mean: the picture is one of the region's rows and columns."""
    kwargs, features, (rows, cols) = one(qwen)
    with pruned(qwen, ILP(0, "compact"), regions=[SMALL]) as patch:
        expected = qwen.model(**kwargs).logits
    [grid] = qwen.token_grids([(1, 1)], kwargs)
    r0, r1, c0, c1 = grid.span(SMALL)
    keep_V = region_mask(SMALL, grid)
    keep_S = torch.ones_like(kwargs["input_ids"], dtype=torch.bool)
    keep_S[qwen.visual_mask(kwargs["input_ids"])] = keep_V
    merge = qwen.merge
    cropped = {
        key: kwargs[key][keep_S][None] for key in ("input_ids", "attention_mask", "mm_token_type_ids")
    } | {"image_grid_thw": torch.tensor([[1, (r1 - r0) * merge, (c1 - c0) * merge]])}  # fmt: skip
    assert patch.kept_B.tolist() == [(r1 - r0) * (c1 - c0)]
    encoded = {"image": type(qwen.model.get_image_features(kwargs["pixel_values"], kwargs["image_grid_thw"]))()}
    encoded["image"]["pooler_output"] = [features[keep_V]]
    actual = qwen.model(**cropped, mm_encoder_outputs=encoded).logits
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_plc_is_the_model_that_is_shown_a_picture_of_one_row(qwen, use_cache) -> None:
    """As `CompressorModule` lays its tokens out in training."""
    kwargs, features, _ = one(qwen)
    plc = PLC(compressor(9, width=64))
    [grid] = qwen.token_grids([(1, 1)], kwargs)
    [tokens] = plc.compress([features], [grid], [SMALL])
    ids, visual = kwargs["input_ids"][0], qwen.visual_mask(kwargs["input_ids"][0])
    first = int(visual.nonzero()[0])
    decide = lambda index, living: None  # noqa: E731
    told = torch.cat([ids[:first], ids.new_full((len(tokens),), qwen.image_token_id), ids[first + len(features) :]])
    expected = mrope.logits(qwen.model, told, tokens, [(1, len(tokens))], decide, False)
    for _ in range(4):
        best = mrope.logits(qwen.model, told, tokens, [(1, len(tokens))], decide, False)[-1].clone()
        best[qwen.image_token_id] = float("-inf")
        told = torch.cat([told, best.argmax()[None]])
    with pruned(qwen, plc, regions=[SMALL]) as patch:
        out = qwen.model(**kwargs, use_cache=use_cache)
        made = qwen.model.generate(
            **kwargs, use_cache=use_cache, max_new_tokens=4, do_sample=False, suppress_tokens=[qwen.image_token_id]
        )
    assert patch.kept_B.tolist() == [11]
    torch.testing.assert_close(out.logits[0], expected, atol=1e-5, rtol=1e-5)
    assert made[0, -4:].tolist() == told[-4:].tolist()


@torch.no_grad()
def test_as_many_compressed_tokens_as_there_were_lie_in_one_row_too(qwen) -> None:
    kwargs, features, _ = one(qwen)
    plc = PLC(compressor(len(features) - 2, width=64))
    [grid] = qwen.token_grids([(1, 1)], kwargs)
    [tokens] = plc.compress([features], [grid], [WIDE])
    ids = kwargs["input_ids"][0]
    expected = mrope.logits(qwen.model, ids, tokens, [(1, len(tokens))], lambda index, living: None, False)
    with pruned(qwen, plc, regions=[WIDE]):
        torch.testing.assert_close(qwen.model(**kwargs).logits[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("method", [ILP(0), ILP(2), ILP(0, "compact"), ILP(1, "compact"), Dense()])
@torch.no_grad()
def test_interleaved_prompts_decode_at_their_own_positions(qwen, method) -> None:
    """Rope deltas are the last prefill's; steps without positions still are those of their own prompt."""
    prompts = [one(qwen, number)[0] for number in (0, 1)]
    options = {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [qwen.image_token_id]}
    outside = qwen.model(**prompts[1])
    kept = qwen.model.model.rope_deltas.clone()
    with pruned(qwen, method, regions=[SMALL]):
        expected = [qwen.model.generate(**prompt, **options)[0, -4:].tolist() for prompt in prompts]
        outs = [qwen.model(**prompt) for prompt in prompts]
        for step in range(1, 4):
            for which in (0, 1):
                token = torch.tensor([[expected[which][step - 1]]])
                outs[which] = qwen.model(input_ids=token, past_key_values=copy.deepcopy(outs[which].past_key_values))
                found = outs[which].logits[0, -1]
                found[qwen.image_token_id] = float("-inf")
                assert int(found.argmax()) == expected[which][step]
        if isinstance(method, Dense):  # a cache from before goes on as well
            inside = qwen.model(input_ids=torch.tensor([[5]]), past_key_values=copy.deepcopy(outside.past_key_values))
    assert torch.equal(qwen.model.model.rope_deltas, kept)
    after = qwen.model(input_ids=torch.tensor([[5]]), past_key_values=outside.past_key_values)
    alone = qwen.model(**prompts[1])
    again = qwen.model(input_ids=torch.tensor([[5]]), past_key_values=alone.past_key_values)
    assert torch.equal(after.logits, again.logits)
    if isinstance(method, Dense):
        assert torch.equal(inside.logits, again.logits)


@torch.no_grad()
def test_made_tokens_of_one_row_leave_the_positions_of_another(qwen) -> None:
    """A row whose tokens are few enough is not merged, whoever stands beside it."""

    def method() -> Schedule:
        return Schedule([ILP(1, "compact"), SparseVLM((12,), (1,))])

    images, regions = pictures()[:2], [Region(2, 3, 3, 3), FULL]
    inputs = qwen.inputs(images, QUESTIONS[:2])
    with pruned(qwen, method(), regions=regions) as patch:
        together = qwen.model(**inputs.kwargs()).logits
        real_BM, kept = patch.survivors_BM >= 0, patch.kept_B.tolist()
    assert kept[0] < 12 < kept[1]  # the second row has merged ones
    for row in (0, 1):
        single = qwen.inputs(images[row : row + 1], QUESTIONS[row : row + 1])
        with pruned(qwen, method(), regions=regions[row : row + 1]):
            alone = qwen.model(**single.kwargs()).logits[0]
        torch.testing.assert_close(together[row, real_BM[row]], alone, atol=5e-5, rtol=1e-5)


@torch.no_grad()
def test_a_second_generate_goes_on_at_its_own_prompts_positions(qwen) -> None:
    prompts = [one(qwen, number)[0] for number in (0, 1)]
    options = {"max_new_tokens": 2, "do_sample": False, "return_dict_in_generate": True, "output_logits": True}
    options["suppress_tokens"] = [qwen.image_token_id]
    with pruned(qwen, ILP(1, "compact"), regions=[SMALL]):
        whole = qwen.model.generate(**prompts[0], **options)
        first = qwen.model.generate(**prompts[0], **options | {"max_new_tokens": 1})
        qwen.model.generate(**prompts[1], **options)  # leaves its own rope deltas
        second = qwen.model.generate(
            input_ids=first.sequences,
            attention_mask=torch.ones_like(first.sequences),
            past_key_values=first.past_key_values,
            **options | {"max_new_tokens": 1},
        )
    torch.testing.assert_close(second.logits[0], whole.logits[1], atol=1e-6, rtol=1e-6)


@torch.no_grad()
def test_a_model_without_deltas_has_none_again() -> None:
    vlm = FAMILIES["qwen2_vl"](0)
    assert vlm.model.model.rope_deltas is None
    with pruned(vlm, ILP(1), regions=[SMALL]):
        vlm.model(**one(vlm)[0])
        assert vlm.model.model.rope_deltas is not None
    assert vlm.model.model.rope_deltas is None


@torch.no_grad()
def test_a_padded_batch_decodes_by_hand_with_and_without_a_mask_of_steps(qwen) -> None:
    images, regions = pictures(), [SMALL, WIDE, FULL]
    inputs = qwen.inputs(images, QUESTIONS)
    options = {"max_new_tokens": 3, "do_sample": False, "suppress_tokens": [qwen.image_token_id]}
    for layer in (0, 1):
        with pruned(qwen, ILP(layer), regions=regions):
            expected = qwen.model.generate(
                **inputs.kwargs(), **options, output_logits=True, return_dict_in_generate=True
            )
            for masked in (True, False) if layer == 0 else (True,):
                cache, mask = qwen.model(**inputs.kwargs()).past_key_values, inputs.tensors["attention_mask"]
                for step in (0, 1):
                    mask = torch.cat([mask, mask.new_ones(3, 1)], dim=1)
                    given = {"attention_mask": mask} if masked else {}
                    token = expected.sequences[:, -3 + step, None]
                    out = qwen.model(input_ids=token, past_key_values=cache, **given)
                    torch.testing.assert_close(
                        out.logits[:, -1].float(), expected.logits[step + 1], atol=1e-5, rtol=1e-4
                    )
        # Layers in front of the prune would see the padding.
        with pruned(qwen, ILP(1), regions=regions), pytest.raises(PruningError, match="was padded"):
            qwen.model(input_ids=token, past_key_values=qwen.model(**inputs.kwargs()).past_key_values)


@torch.no_grad()
def test_grids_come_from_the_forward_with_text_rows_and_repeats(qwen) -> None:
    images = pictures(2)
    inputs = qwen.inputs(images, QUESTIONS[:2])
    shapes = [(grid.rows, grid.cols) for grid in inputs.grids]
    ids, text = inputs.tensors["input_ids"], torch.full_like(inputs.tensors["input_ids"][:1], 7)
    rows = torch.cat([ids[:1], text, ids[1:]])
    sizes = [(4, 4)] * 3
    thw = inputs.tensors["image_grid_thw"]
    found = qwen.token_grids(sizes, {"input_ids": rows, "image_grid_thw": thw})
    assert [(grid.rows, grid.cols) for grid in found] == [shapes[0], (1, 1), shapes[1]]
    twice = {"input_ids": rows.repeat_interleave(2, 0), "image_grid_thw": thw.repeat_interleave(2, 0)}
    assert qwen.token_grids(sizes, twice) == found
    types = qwen.visual_mask(rows).int()
    position_ids, _ = qwen.model.model.get_rope_index(rows, types, thw)
    for positions in (position_ids, torch.cat([position_ids[:1], position_ids])):
        assert qwen.token_grids(sizes, {"input_ids": rows, "position_ids": positions}) == found
    both = torch.cat([ids[:1], ids[1:]], dim=1)
    position_ids, _ = qwen.model.model.get_rope_index(both, qwen.visual_mask(both).int(), thw)
    for given in ({"image_grid_thw": thw}, {"position_ids": position_ids}):
        with pytest.raises(ValueError, match="one image per row"):
            qwen.token_grids(sizes[:1], {"input_ids": both, **given})
    with pytest.raises(ValueError, match="image_grid_thw"):
        qwen.token_grids(sizes, {"input_ids": rows})
    with pytest.raises(ValueError, match="2 images in the batch and 3 image sizes"):
        qwen.token_grids(sizes, {"image_grid_thw": thw})


@torch.no_grad()
def test_videos_are_refused(qwen) -> None:
    kwargs = one(qwen)[0]
    with pruned(qwen, ILP(1), regions=[SMALL]):
        for video in ({"pixel_values_videos": kwargs["pixel_values"]}, {"video_grid_thw": kwargs["image_grid_thw"]}):
            with pytest.raises(NotSupportedError, match="videos"):
                qwen.model(**kwargs, **video)
        with pytest.raises(NotSupportedError, match="videos"):
            qwen.model.generate(
                input_ids=kwargs["input_ids"], mm_token_type_ids=2 * kwargs["mm_token_type_ids"],
                pixel_values_videos=kwargs["pixel_values"], video_grid_thw=kwargs["image_grid_thw"], max_new_tokens=1,
            )  # fmt: skip


def test_sliding_windows_are_refused() -> None:
    vlm = FAMILIES["qwen2_vl"](0)
    vlm.decoder.config.layer_types = ["full_attention", *["sliding_attention"] * 3]
    with pytest.raises(NotSupportedError, match="sliding"), pruned(vlm, Dense()):
        pass


@torch.no_grad()
def test_cache_lengths_by_layer(qwen) -> None:
    kwargs = one(qwen)[0]
    cache = DynamicCache(config=qwen.model.config.get_text_config())
    with pruned(qwen, ILP(2), regions=[SMALL]) as patch:
        qwen.model(**kwargs, past_key_values=cache)
    total, kept = kwargs["input_ids"].shape[1], int(patch.kept_B[0])
    short = total - int(patch.visual_B[0]) + kept
    assert [layer.keys.shape[-2] for layer in cache.layers] == [total, total, short, short]
