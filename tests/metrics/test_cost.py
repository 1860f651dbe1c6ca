"""The FLOP formulas against counted matrix products, published figures, and real caches."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    Qwen2_5_VLConfig,
    Qwen2_5_VLForConditionalGeneration,
    Qwen2VLConfig,
    Qwen2VLForConditionalGeneration,
)

from cropl.grid import Region
from cropl.metrics import cost
from cropl.pruning import ILP, Dense, pruned
from tests.reference.tiny import pixels, prompt, tiny_llava

SMALL = Region(2, 3, 4, 4)


def counted(call) -> int:
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        call()
    return counter.get_total_flops()


@pytest.mark.parametrize(("layers", "kv_heads"), [(2, 4), (4, 2), (8, 1)])
@pytest.mark.parametrize("layer", [None, 0, 1, 2])
def test_decoder_against_counts(layers, kv_heads, layer) -> None:
    config = tiny_llava(layers, kv_heads).config.text_config
    ids, pixel = prompt(6)[None], pixels(1, torch.float32)
    tokens = cost.layer_tokens(layers, 64, SMALL.area, 9, layer)
    totals = {}
    for attention in ("sdpa", "eager"):
        model = tiny_llava(layers, kv_heads, torch.float32, attention=attention)
        with torch.no_grad():
            encoded = {"image": model.get_image_features(pixel_values=pixel)}
        with pruned(model, Dense() if layer is None else ILP(layer), keep=None, regions=[SMALL]):
            totals[attention] = counted(
                lambda model=model, encoded=encoded: model(input_ids=ids, mm_encoder_outputs=encoded, logits_to_keep=1)
            )
    linear, attention = cost.linear_flops(config, tokens), cost.attention_flops(config, tokens)
    assert totals["sdpa"] == linear  # the counter does not see SDPA on a CPU
    assert totals["eager"] - linear == 2 * attention  # eager computes all pairs, the formula half of them
    assert cost.prefill_flops(config, 64, SMALL.area, 9, layer) == linear + attention


def test_llava_vision_against_counts() -> None:
    model = tiny_llava(2, dtype=torch.float32, attention="eager")
    assert counted(lambda: model.get_image_features(pixel_values=pixels(1, torch.float32))) == cost.vision_flops(
        model.config
    )
    with pytest.raises(ValueError, match="not known"):
        cost.vision_flops(model.config.text_config)


def test_qwen2_vl_vision_against_counts() -> None:
    vision = {"depth": 2, "embed_dim": 32, "hidden_size": 48, "num_heads": 2, "patch_size": 4, "mlp_ratio": 3}
    text = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    text |= {"intermediate_size": 32, "vocab_size": 50}
    config = Qwen2VLConfig(vision_config=vision, text_config=text)
    config._attn_implementation = "eager"
    tower = Qwen2VLForConditionalGeneration(config).model.visual
    grid = torch.tensor([[1, 6, 8]])
    total = counted(lambda: tower(torch.randn(48, 3 * 2 * 4 * 4), grid_thw=grid))
    assert total == pytest.approx(cost.vision_flops(config, 48), rel=1e-3)
    assert cost.vision_flops(config, (6, 8)) == cost.vision_flops(config, 48)
    with pytest.raises(ValueError, match="patches is needed"):
        cost.vision_flops(config)


@pytest.mark.parametrize("grid", [(16, 24), (16, 16), (6, 8), (10, 22)])  # windows of 8 x 8, whole and cut
def test_qwen2_5_vl_vision_against_counts(grid) -> None:
    vision = {"depth": 3, "hidden_size": 64, "out_hidden_size": 48, "intermediate_size": 80, "num_heads": 2}
    vision |= {"patch_size": 4, "window_size": 32, "fullatt_block_indexes": [1]}
    text = {"hidden_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1}
    text |= {"intermediate_size": 32, "vocab_size": 50}
    config = Qwen2_5_VLConfig(vision_config=vision, text_config=text)
    config._attn_implementation = "eager"
    tower = Qwen2_5_VLForConditionalGeneration(config).model.visual
    pixels_PC = torch.randn(grid[0] * grid[1], 3 * 2 * 4 * 4)
    total = counted(lambda: tower(pixels_PC, grid_thw=torch.tensor([[1, *grid]])))
    assert total == cost.vision_flops(config, grid)
    assert cost.vision_flops(config, grid, layers=1) < cost.vision_flops(config, grid, layers=2)
    with pytest.raises(ValueError, match="rows, columns"):
        cost.vision_flops(config, grid[0] * grid[1])


@pytest.mark.parametrize("layer", [0, 1, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@torch.no_grad()
def test_kv_bytes_are_the_caches(layer, dtype) -> None:
    model = tiny_llava(3, 2, dtype)
    ids = prompt(6)[None].repeat(2, 1)
    with pruned(model, ILP(layer), regions=[SMALL, SMALL]):
        cache = model(input_ids=ids, pixel_values=pixels(2, dtype)).past_key_values
    tokens = cost.layer_tokens(3, 64, SMALL.area, 9, layer)
    assert cost.kv_bytes(cache) == 2 * cost.kv_bytes_of_shapes(model.config.text_config, tokens, dtype)


LLAVA_7B = LlamaConfig(
    hidden_size=4096, intermediate_size=11008, num_hidden_layers=32, num_attention_heads=32, vocab_size=32064
)
LLAVA_13B = LlamaConfig(
    hidden_size=5120, intermediate_size=13824, num_hidden_layers=40, num_attention_heads=40, vocab_size=32064
)


@pytest.mark.parametrize(
    ("config", "visual", "total", "kept", "ratio", "mebibytes"),
    [
        (LLAVA_7B, 576, 8.48e12, 192, 0.440, 143),
        (LLAVA_7B, 576, 8.48e12, 64, 0.255, 83),
        (LLAVA_13B, 576, 16.56e12, 128, 0.339, 172),
        (LLAVA_7B, 2880, 40.5e12, 160, 0.132, 200),
    ],
)
def test_published_sizes(config, visual, total, kept, ratio, mebibytes) -> None:
    # 70 text tokens, K=2, as in the table of ideal savings that these figures come from.
    dense = cost.prefill_flops(config, visual, visual, 70)
    assert dense == pytest.approx(total, rel=2e-3)
    assert cost.prefill_flops(config, visual, kept, 70, 2) / dense == pytest.approx(ratio, abs=6e-4)
    tokens = cost.layer_tokens(config.num_hidden_layers, visual, kept, 70, 2)
    assert cost.kv_bytes_of_shapes(config, tokens, torch.bfloat16) / 2**20 == pytest.approx(mebibytes, abs=0.6)


def test_published_vision_tower() -> None:
    clip = CLIPVisionConfig(
        hidden_size=1024,
        intermediate_size=4096,
        num_hidden_layers=24,
        num_attention_heads=16,
        image_size=336,
        patch_size=14,
    )
    config = LlavaConfig(vision_config=clip, text_config=LLAVA_7B)
    assert cost.vision_flops(config, layers=23) == pytest.approx(0.39e12, rel=0.01)
    assert cost.vision_flops(config) > cost.vision_flops(config, layers=23)


def test_wrong_shapes() -> None:
    with pytest.raises(ValueError, match="3 entries for 32"):
        cost.decoder_flops(LLAVA_7B, [1, 2, 3])
    with pytest.raises(ValueError, match="layer=33"):
        cost.prefill_flops(LLAVA_7B, 576, 64, 70, 33)
    with pytest.raises(ValueError, match="visual_kept"):
        cost.prefill_flops(LLAVA_7B, 576, 577, 70, 2)
