"""Methods that meet a budget in stages, and what deciding costs, against published numbers and counted operations."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPVisionConfig, LlamaConfig, LlavaNextConfig

from cropl.budget import InfeasibleBudget
from cropl.grid import TokenGrid
from cropl.metrics.cost import attention_flops, decoder_flops
from cropl.models.tower_view import TowerImage
from cropl.pruning import DivPrune, FastV, PyramidDrop, SparseVLM, VisionZip, VisPruner, pruned
from cropl.pruning.select import average, scaled_layers
from cropl.tiling import TokenMap
from tests.families import llava_next, pictures, under
from tests.reference.tiny import pixels, prompt, tiny_llava


@pytest.mark.parametrize(("tokens", "ratio"), [(192, 0.5596), (128, 0.4197), (64, 0.1916)])
def test_pyramiddrop_finds_the_published_ratios(tokens, ratio) -> None:
    made = PyramidDrop.for_budget(tokens, 576, "layer_average", 32)
    assert made.layers == (2, 8, 16) and made.ratio == pytest.approx(ratio, abs=5e-5)


@pytest.mark.parametrize(
    ("computed", "kept"), [(206, (300, 200, 110)), (145, (303, 110, 36)), (82, (66, 30, 17))]
)  # fmt: skip
def test_sparsevlm_finds_the_published_lists_from_what_they_compute(computed, kept) -> None:
    made = SparseVLM.for_budget(computed, 576, "layer_average", 32)
    assert made.rating == (2, 6, 15)
    assert [share * 576 for share in made.kept] == pytest.approx(kept, abs=1.5)


@pytest.mark.parametrize("meaning", ["post_prune", "layer_average"])
@pytest.mark.parametrize("layers", [6, 12, 32])
@pytest.mark.parametrize("tokens", [40, 30.0, 24])
@pytest.mark.parametrize("method", ["pyramiddrop", "sparsevlm", "sparsevlm+"])
@torch.no_grad()
def test_a_run_keeps_what_the_budget_says(meaning, layers, tokens, method) -> None:
    model = tiny_llava(layers, dtype=torch.float32)
    kind = PyramidDrop if method == "pyramiddrop" else SparseVLM
    made = kind.for_budget(tokens, 64, meaning, layers, **({"recycle": 0} if method == "sparsevlm+" else {}))
    assert made.name == method
    with pruned(model, made) as patch:
        model(input_ids=prompt(7)[None], pixel_values=pixels(1))
    visual_L = patch.visual_BL[0]
    met = visual_L[-1].item() if meaning == "post_prune" else visual_L.float().mean().item()
    assert abs(met - tokens) <= 1.5  # each stage is rounded


def test_what_cannot_be_met_says_so() -> None:
    for method in (PyramidDrop, SparseVLM):
        with pytest.raises(InfeasibleBudget, match=r"64 tokens cannot be met: .* take [0-9.]+ to 576"):
            method.for_budget(64, 576, "layer_average", 6)
        with pytest.raises(InfeasibleBudget, match="3 stages do not fit into 3 decoder layers"):
            method.for_budget(64, 576, "post_prune", 3)
    with pytest.raises(ValueError, match="a budget needs 3 layers"):
        SparseVLM.for_budget(64, 576, "post_prune", 8, layers=(1, 2))


def test_layers_scale_with_the_model() -> None:
    assert scaled_layers((2, 8, 16), 32) == (2, 8, 16)
    assert scaled_layers((2, 8, 16), 6) == (1, 2, 3)
    assert scaled_layers((2, 8, 16), 40) == (2, 10, 20)
    assert scaled_layers((3, 7, 16), 6) == (1, 2, 3)  # the second would be the first
    assert average([300, 200], [2, 6], 576, 32) == pytest.approx((2 * 576 + 4 * 300 + 26 * 200) / 32)


@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize(
    "method",
    [FastV(10, 2), PyramidDrop(0.5, (1, 2, 3)), PyramidDrop(0.4, (0, 2)), DivPrune(9), DivPrune(9, layer=2)],
    ids=lambda method: f"{method.name}-{method.layers}",
)
@torch.no_grad()
def test_deciding_costs_what_it_computes(method, kv_heads) -> None:
    model = tiny_llava(4, kv_heads, attention="eager")
    config, ids = model.config.text_config, prompt(7)
    with FlopCounterMode(display=False) as seeing:
        model.get_image_features(pixel_values=pixels(1))
    with pruned(model, method) as patch, FlopCounterMode(display=False) as counter:
        model(input_ids=ids[None], pixel_values=pixels(1), logits_to_keep=1)
    visual_L, text = patch.visual_BL[0].tolist(), len(ids) - 64
    lengths = [visual + text for visual in visual_L]
    layers = decoder_flops(config, lengths) + attention_flops(config, lengths)  # eager computes both triangles
    done = counter.get_total_flops() - seeing.get_total_flops()
    assert done == layers + method.flops(config, 64, visual_L, text)


@pytest.mark.parametrize("method", [VisionZip(16), VisionZip(9, 0), VisPruner(16)], ids=lambda method: method.name)
@torch.no_grad()
def test_looking_into_the_tower_costs_what_it_computes(method) -> None:
    model = tiny_llava(3, attention="eager")
    config, ids, grid = model.config.text_config, prompt(7), TokenGrid(8, 8, 0, 0, 8, 8, 8, 8)
    with FlopCounterMode(display=False) as seeing:
        model.get_image_features(pixel_values=pixels(1))
    with pruned(model, method), FlopCounterMode(display=False) as counter:
        model(input_ids=ids[None], pixel_values=pixels(1), logits_to_keep=1)
    lengths = [len(ids) - 64 + method.count(grid)] * 3
    layers = decoder_flops(config, lengths) + attention_flops(config, lengths)
    assert counter.get_total_flops() - seeing.get_total_flops() - layers == method.flops(grid, model.config)


def test_five_crops_cost_five_times_one() -> None:
    """By hand: LLaVA-NeXT-7B, 2880 = 5 x 576 tokens, of which each crop keeps 128."""
    config = LlavaNextConfig(
        vision_config=CLIPVisionConfig(hidden_size=1024, num_attention_heads=16, image_size=336, patch_size=14),
        text_config=LlamaConfig(hidden_size=4096),
    )
    view = TokenGrid.stretched(24, 24, 672, 672)
    grid = TokenMap((view, TokenGrid.stretched(48, 48, 672, 672)), 672, 672, crops=5)
    assert grid.num_tokens == 2880
    looking = 2 * 577 * 1024  # one class token's query
    thinning = 2 * (576 - 64) ** 2 * 1024  # all pairs of those that attention did not choose
    assert VisPruner(640).flops(grid, config) == 5 * (looking + thinning)
    assert VisPruner(640, important=1).flops(grid, config) == 5 * looking
    others = 576 - 107 - 20  # beside 107 dominant patches and 20 targets; the class token is the 128th
    merging = 2 * others * 20 * (1024 // 16 + 1024)
    projecting = 2 * (20 + 1) * (1024 * 4096 + 4096 * 4096)
    assert VisionZip(640).flops(grid, config) == 5 * (looking + merging + projecting)
    assert VisPruner(128).flops(view, config) == looking + thinning
    rest = 2 * 2 * (576 - 65) ** 2 * 1024 + 3 * thinning  # 65 of 130 in two crops, 64 of 129 in three
    assert VisPruner(647).flops(grid, config) == 5 * looking + rest


@pytest.mark.parametrize("protocol", ["anyres", "fixed"])
@pytest.mark.parametrize("method", [VisionZip(43), VisPruner(43), VisPruner(0.3)], ids=lambda method: method.name)
@torch.no_grad()
def test_crops_cost_what_they_compute(method, protocol) -> None:
    vlm = under(protocol, llava_next(dtype=torch.float32, attention="eager"))
    [image] = pictures(1)
    with FlopCounterMode(display=False) as seeing:
        vlm.encode_images([image])
    images: list[TowerImage] = []
    watch = vlm.watch_tower(images.append)
    with FlopCounterMode(display=False) as looking:
        vlm.encode_images([image])
    watch.remove()
    with FlopCounterMode(display=False) as reducing:
        method.reduce_image(images[0])
    done = looking.get_total_flops() - seeing.get_total_flops() + reducing.get_total_flops()
    assert done == method.flops(vlm.token_maps([image.size])[0], vlm.model.config)


@torch.no_grad()
def test_sparsevlm_costs_at_most_what_it_says() -> None:
    """Its raters are some of the words, and all are counted."""
    model = tiny_llava(4, attention="eager")
    config, ids, method = model.config.text_config, prompt(9), SparseVLM((30, 12), (0, 2))
    with pruned(model, method) as patch, FlopCounterMode(display=False) as counter:
        model(input_ids=ids[None], pixel_values=pixels(1), logits_to_keep=1)
    with FlopCounterMode(display=False) as seeing:
        model.get_image_features(pixel_values=pixels(1))
    visual_L, text = patch.visual_BL[0].tolist(), len(ids) - 64
    lengths = [visual + text for visual in visual_L]
    layers = decoder_flops(config, lengths) + attention_flops(config, lengths)
    deciding = counter.get_total_flops() - seeing.get_total_flops() - layers
    assert 0.25 * method.flops(config, 64, visual_L, text) < deciding <= 1.05 * method.flops(config, 64, visual_L, text)
