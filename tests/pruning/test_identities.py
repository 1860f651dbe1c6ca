"""Identities of pruned forward passes on tiny random models: against the unpatched model, and a reference."""

from __future__ import annotations

import pytest
import torch

from cropl.grid import Region, TokenGrid
from cropl.pruning import ILP, Dense, pruned
from cropl.pruning.request import region_mask
from tests.reference.masked import masked_logits
from tests.reference.tiny import FULL, IMAGE, SIDE, SMALL, WIDE, batch, pixels, prompt, tiny_llava

SQUARE = TokenGrid.padded_square(SIDE, 1, 1)


def kept_positions(ids_S: torch.Tensor, keep_V: torch.Tensor) -> torch.Tensor:
    keep_S = torch.ones(len(ids_S), dtype=torch.bool)
    keep_S[ids_S == IMAGE] = keep_V
    return keep_S


def reference(model, ids_S, pixel, region, layer, compact=False, grid=SQUARE):
    features = model.get_image_features(pixel_values=pixel[None]).pooler_output[0]
    keep_S = kept_positions(ids_S, region_mask(region, grid))
    return masked_logits(model, ids_S, features, keep_S, layer, compact)[keep_S]


@pytest.mark.parametrize(
    ("layers", "kv_heads", "dtype", "attention"),
    [
        (2, 4, torch.float64, "sdpa"),
        (4, 2, torch.float32, "sdpa"),
        (8, 1, torch.float64, "sdpa"),
        (3, 4, torch.float32, "eager"),
    ],
)
@torch.no_grad()
def test_full_region_is_the_unpatched_model(layers, kv_heads, dtype, attention) -> None:
    model = tiny_llava(layers, kv_heads, dtype, attention=attention)
    inputs = batch([prompt(5), prompt(9, seed=1)]) | {"pixel_values": pixels(2, dtype)}
    plain = model(**inputs).logits
    for layer in range(layers + 1):
        with pruned(model, ILP(layer), regions=[FULL, FULL]) as patch:
            assert torch.equal(model(**inputs).logits, plain)
        assert patch.kept_B.tolist() == [64, 64]


@pytest.mark.parametrize("layer", [0, 1, 2, 4])
@pytest.mark.parametrize("compact", [False, True])
@pytest.mark.parametrize("use_cache", [False, True])
@pytest.mark.parametrize(("kv_heads", "attention"), [(4, "sdpa"), (2, "sdpa"), (1, "eager")])
@torch.no_grad()
def test_removal_is_masking(layer, compact, use_cache, kv_heads, attention) -> None:
    # use_cache=False without a mask is the case in which gaps in positions would be read as packed sequences.
    model = tiny_llava(4, kv_heads, attention=attention)
    ids, pixel = prompt(6), pixels(1)
    expected = (
        reference(model, ids, pixel[0], SMALL, layer, compact) if layer < 4 else model(ids[None], pixel).logits[0]
    )
    with pruned(model, ILP(layer, "compact" if compact else "original"), regions=[SMALL]) as patch:
        out = model(input_ids=ids[None], pixel_values=pixel, use_cache=use_cache)
    assert out.logits.shape[1] == (9 + SMALL.area if layer < 4 else 73)
    assert patch.kept_B.tolist() == [SMALL.area if layer < 4 else 64]
    torch.testing.assert_close(out.logits[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("text", "kv_heads"), [("llama", 4), ("llama", 2), ("mistral", 2), ("qwen2", 1)])
@pytest.mark.parametrize("layer", [0, 2])
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("positions", ["original", "compact"])
@torch.no_grad()
def test_ragged_batch_is_one_by_one(text, kv_heads, layer, attention, positions) -> None:
    # In float64, transformers' eager attention turns padding into NaN (in its own layers too).
    dtype = torch.float64 if attention == "sdpa" else torch.float32
    model = tiny_llava(3, kv_heads, dtype, text=text, attention=attention)
    prompts = [prompt(5), prompt(11, before=1, seed=1), prompt(4, images=0, seed=2), prompt(2, seed=3)]
    regions, pixel = [SMALL, WIDE, FULL, FULL], pixels(3, dtype)
    images = [pixel[:1], pixel[1:2], None, pixel[2:]]
    method = ILP(layer, positions)
    with pruned(model, method, regions=regions) as patch:
        together = model(**batch(prompts), pixel_values=pixel).logits
    assert patch.kept_B.tolist() == [SMALL.area, WIDE.area, 0, 64]
    assert patch.visual_B.tolist() == [64, 64, 0, 64]
    for row, (ids, image, region) in enumerate(zip(prompts, images, regions, strict=True)):
        with pruned(model, method, regions=[region]):
            alone = model(input_ids=ids[None], pixel_values=image).logits[0]
        real = patch.survivors_BM[row] >= 0
        assert int(real.sum()) == len(alone)
        tolerance = 1e-5 if dtype == torch.float64 else 5e-5
        torch.testing.assert_close(together[row, real], alone, atol=tolerance, rtol=1e-5)


@torch.no_grad()
def test_right_padding_and_survivors() -> None:
    model = tiny_llava(3)
    prompts = [prompt(4), prompt(9, seed=1)]
    pixel, regions = pixels(2), [SMALL, SMALL]
    with pruned(model, ILP(1), regions=regions) as left:
        expected = model(**batch(prompts), pixel_values=pixel).logits
    with pruned(model, ILP(1), regions=regions) as right:
        actual = model(**batch(prompts, side="right"), pixel_values=pixel).logits
    for row in range(2):
        real = left.survivors_BM[row] >= 0
        torch.testing.assert_close(actual[row, real], expected[row, real], atol=1e-5, rtol=1e-5)
    ids = batch(prompts, side="right")["input_ids"]
    survivors = right.survivors_BM[0]
    visual = ids[0, survivors[survivors >= 0]] == IMAGE
    assert int(visual.sum()) == SMALL.area


@pytest.mark.parametrize("size", [(640, 480), (100, 333), (17, 400), (640, 640)])
@torch.no_grad()
def test_non_square_images(size) -> None:
    model = tiny_llava(3)
    ids, pixel = prompt(5), pixels(1)
    grid = TokenGrid.padded_square(SIDE, *size)
    r0, r1, c0, c1 = grid.span(SMALL)
    expected = reference(model, ids, pixel[0], SMALL, 1, grid=grid)
    for given in ({"image_sizes": [size]}, {"grids": [grid]}):
        with pruned(model, ILP(1), regions=[SMALL], **given) as patch:
            out = model(input_ids=ids[None], pixel_values=pixel)
        assert patch.kept_B.tolist() == [(r1 - r0) * (c1 - c0)]
        torch.testing.assert_close(out.logits[0], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_keep_masks() -> None:
    model = tiny_llava(3)
    ids, pixel = torch.stack([prompt(5), prompt(5, seed=1)]), pixels(2)
    keep_BV = torch.stack([region_mask(SMALL, SQUARE), region_mask(WIDE, SQUARE)])
    with pruned(model, ILP(1), regions=[SMALL, WIDE]):
        expected = model(input_ids=ids, pixel_values=pixel).logits
    for keep in (keep_BV, list(keep_BV)):
        with pruned(model, ILP(1), keep=keep):
            assert torch.equal(model(input_ids=ids, pixel_values=pixel).logits, expected)
    with pruned(model, ILP(1), keep=[keep_BV[0], None]) as patch:
        model(input_ids=ids, pixel_values=pixel)
    assert patch.kept_B.tolist() == [SMALL.area, 64]
    two_images = prompt(5, images=2)
    keep = torch.cat([keep_BV[0], keep_BV[1]])
    with pruned(model, ILP(1), keep=keep[None]) as patch:
        model(input_ids=two_images[None], pixel_values=pixel)
    assert patch.kept_B.tolist() == [SMALL.area + WIDE.area]


@pytest.mark.parametrize("layer", [0, 1, 2])
def test_labels_are_gathered(layer) -> None:
    model = tiny_llava(3)
    prompts, regions, pixel = [prompt(5), prompt(9, before=0, seed=1)], [SMALL, WIDE], pixels(2)
    inputs = batch(prompts)
    text = inputs["attention_mask"].bool() & (inputs["input_ids"] != IMAGE)
    labels = inputs["input_ids"].masked_fill(~text, -100)
    losses, count = [], 0
    for ids, pix, region in zip(prompts, pixel, regions, strict=True):
        with torch.no_grad(), pruned(model, ILP(layer), regions=[region]) as patch:
            logits = model(input_ids=ids[None], pixel_values=pix[None]).logits[0]
        kept = torch.arange(len(ids)) if patch.survivors_BM is None else patch.survivors_BM[0]
        target = ids[kept].masked_fill(ids[kept] == IMAGE, -100)[1:]
        losses.append(torch.nn.functional.cross_entropy(logits[:-1].float(), target, reduction="sum"))
        count += int((target != -100).sum())
    with pruned(model, ILP(layer), regions=regions):
        out = model(**inputs, pixel_values=pixel, labels=labels)
        tuple_out = model(**inputs, pixel_values=pixel, labels=labels, return_dict=False)
        summed = model(**inputs, pixel_values=pixel, labels=labels, num_items_in_batch=7)
    torch.testing.assert_close(out.loss, sum(losses) / count, atol=1e-4, rtol=1e-5)
    torch.testing.assert_close(tuple_out[0], out.loss)
    torch.testing.assert_close(summed.loss, out.loss * count / 7)
    assert next(iter(out)) == "loss"
    out.loss.backward()
    assert model.model.multi_modal_projector.linear_1.weight.grad.abs().sum() > 0


def test_dense_and_full_loss_are_the_unpatched_ones() -> None:
    model = tiny_llava(2)
    inputs = batch([prompt(5), prompt(9, seed=1)]) | {"pixel_values": pixels(2)}
    labels = inputs["input_ids"].masked_fill(inputs["input_ids"] == IMAGE, -100)
    plain = model(**inputs, labels=labels)
    for method, request in ((Dense(), {}), (ILP(1), {"regions": [FULL, FULL]})):
        with pruned(model, method, **request):
            out = model(**inputs, labels=labels)
        assert torch.equal(out.loss, plain.loss) and torch.equal(out.logits, plain.logits)


def test_gradient_checkpointing_gives_the_same_gradient() -> None:
    model = tiny_llava(3).train()
    ids, pixel = prompt(5)[None], pixels(1)
    gradients = []
    for checkpointing in (False, True):
        if checkpointing:
            model.activation_checkpointing_enable()
        model.zero_grad()
        with pruned(model, ILP(1), regions=[SMALL]):
            loss = model(input_ids=ids, pixel_values=pixel, labels=ids.clone(), use_cache=False).loss
            loss.backward()
        gradients.append(model.model.language_model.layers[2].mlp.up_proj.weight.grad.clone())
    torch.testing.assert_close(*gradients)


@torch.no_grad()
def test_logits_to_keep_hidden_states_and_attentions() -> None:
    model = tiny_llava(3, attention="eager")
    ids, pixel = prompt(5)[None], pixels(1)
    with pruned(model, ILP(1), regions=[SMALL]):
        out = model(input_ids=ids, pixel_values=pixel, output_hidden_states=True, output_attentions=True)
        last = model(input_ids=ids, pixel_values=pixel, logits_to_keep=2)
    kept = 8 + SMALL.area
    assert [tuple(a.shape[2:]) for a in out.attentions] == [(72, 72), (kept, kept), (kept, kept)]
    assert [h.shape[1] for h in out.hidden_states] == [72, 72, kept, kept]
    torch.testing.assert_close(last.logits, out.logits[:, -2:])


@torch.no_grad()
def test_equal_rows_need_no_mask_and_positions_never_reach_the_kernel() -> None:
    model = tiny_llava(3)
    seen: list[dict] = []
    layer = model.model.language_model.layers[2].self_attn
    handle = layer.register_forward_pre_hook(lambda module, args, kwargs: seen.append(kwargs), with_kwargs=True)
    ids, pixel = torch.stack([prompt(5), prompt(5, seed=1)]), pixels(2)
    ragged = batch([prompt(5), prompt(7, seed=1)])
    with pruned(model, ILP(1), regions=[SMALL, Region(0, 0, 2, 1)]):
        model(input_ids=ids, pixel_values=pixel, use_cache=False)
        with torch.enable_grad():  # else ragged rows run packed
            model(**ragged, pixel_values=pixel)
    with pruned(model, ILP(1), regions=[Region(0, 0, 3, 0), Region(0, 0, 1, 0)]):
        model(**ragged, pixel_values=pixel)  # prompts of 5 and 7 words, 4 and 2 tokens: equally long after the prune
    handle.remove()
    assert [kwargs["attention_mask"] is None for kwargs in seen] == [True, False, True]
    assert all(kwargs["position_ids"] is None for kwargs in seen)
    mask = seen[1]["attention_mask"]
    assert mask.dtype == torch.bool and mask.diagonal(dim1=2, dim2=3).all()


@torch.no_grad()
def test_positional_arguments_and_the_headless_model() -> None:
    model = tiny_llava(3)
    ids, pixel = prompt(5)[None], pixels(1)
    with pruned(model, ILP(1), regions=[SMALL]) as patch:
        expected = model(input_ids=ids, pixel_values=pixel)
        assert torch.equal(model(ids, pixel).logits, expected.logits)
        hidden = model.model(ids, pixel).last_hidden_state
    assert torch.equal(model.lm_head(hidden), expected.logits)
    assert patch.prefills == 3
