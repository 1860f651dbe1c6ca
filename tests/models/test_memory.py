"""Shapes of published models, and the estimate of a training's memory against what torch really keeps."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import LlavaForConditionalGeneration, Qwen2VLForConditionalGeneration

from cropl.models import memory
from cropl.models.compressor import Compressor, CompressorConfig
from cropl.models.lora import train_rows
from cropl.models.memory import MASTER, MOMENTS, Batch, Memory, estimate, parameters_of, trained_numbers
from cropl.models.skeleton import PUBLISHED, config_of, skeleton
from cropl.models.tuning import choose_trained
from cropl.models.vlm import VLM, as_vlm
from tests.reference.checkpoints import tiny_llava as tiny_llava
from tests.reference.checkpoints import tiny_localizer as tiny_localizer

VICUNA_13B, TOWER = 13_015_864_320, 303_507_456
"""Weights of lmsys/vicuna-13b-v1.5, and of CLIP ViT-L/14 at 336 pixels."""
SIZES = {
    "Qwen/Qwen2-VL-2B-Instruct": 2_208_985_600,
    "llava-hf/llava-1.5-7b-hf": 7_063_427_072,
    "llava-hf/llava-1.5-13b-hf": VICUNA_13B + 2 * 64 * 5120 + TOWER + (1024 + 1) * 5120 + (5120 + 1) * 5120,
}
MERGER, ROWS = 34_087_936, 16 * 1536
_OUTPUTS = {1536: 2, 256: 2}  # of q and o, of k and v
ADAPTERS = 28 * 16 * (sum((1536 + width) * count for width, count in _OUTPUTS.items()) + 3 * (1536 + 8960))
TRAINED = {"full": 1_577_802_240, "lora": MERGER + ROWS + ADAPTERS, "projector": MERGER + ROWS}
"""Of Qwen2-VL-2B: all but the tower; the merger, 16 rows and adapters of rank 16; the merger and 16 rows."""


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_models_have_their_known_sizes(name: str) -> None:
    vlm = skeleton(name, torch.bfloat16)
    parameters = parameters_of([vlm.model])
    assert sum(one.numel() for one in parameters) == SIZES[name]
    assert {one.device.type for one in parameters} == {"meta"} and {one.dtype for one in parameters} == {torch.bfloat16}


@pytest.mark.parametrize("tune", TRAINED)
def test_what_trains_of_a_published_model(tune: str) -> None:
    vlm = skeleton("Qwen/Qwen2-VL-2B-Instruct", torch.bfloat16)
    choose_trained(vlm, tune)
    if tune != "full":
        train_rows(vlm, range(16))
    assert trained_numbers([vlm.model]) == TRAINED[tune]
    taken = estimate(vlm, [], Batch.of(1, 256, 256, 512))
    assert (taken.gradients, taken.optimizer) == (MASTER * TRAINED[tune], MOMENTS * TRAINED[tune])
    frozen = SIZES["Qwen/Qwen2-VL-2B-Instruct"] - 1_577_802_240 if tune == "full" else None
    assert frozen is None or taken.weights == MASTER * TRAINED[tune] + 2 * frozen


def test_a_table_grows_where_new_tokens_do_not_fit(tiny_localizer: str) -> None:
    known = config_of(tiny_localizer).text_config.vocab_size
    for tokens, rows in (([], known), (["<x_0>"], known), (["<new>", "<newer>"], known + 2)):
        table = skeleton(tiny_localizer, new_tokens=tokens).model.get_input_embeddings().weight
        assert table.shape[0] == rows and table.is_meta


def test_other_models_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match=r"no local folder and not one of.*llava-1.5-7b-hf.*give its folder"):
        skeleton("liuhaotian/llava-v1.5-7b")


def kept_for_backward(vlm: VLM, length: int, autocast: bool) -> int:
    """Bytes that autograd keeps of the decoder's layers, weights left out."""
    decoder: Any = vlm.decoder.train()
    own = {one.untyped_storage().data_ptr() for one in (*vlm.model.parameters(), *vlm.model.buffers())}
    weights = {tuple(one.shape) for one in vlm.model.parameters()}
    weights |= {shape[::-1] for shape in weights}
    found: dict[int, int] = {}

    def note(kept: torch.Tensor) -> torch.Tensor:
        storage = kept.untyped_storage()
        if storage.data_ptr() not in own and tuple(kept.shape) not in weights:  # nor autocast's copies of them
            found[storage.data_ptr()] = storage.nbytes()
        return kept

    dtype = torch.float32 if autocast else torch.bfloat16
    x_BSD = torch.randn(1, length, decoder.config.hidden_size, dtype=dtype).requires_grad_()
    mask = torch.ones(1, 1, length, length, dtype=torch.bool).tril()
    positions = torch.arange(length)[None]
    positions = (
        positions[None].expand(3, -1, -1) if isinstance(vlm.model, Qwen2VLForConditionalGeneration) else positions
    )
    with (
        torch.autograd.graph.saved_tensors_hooks(note, lambda kept: kept),
        torch.autocast("cpu", torch.bfloat16, enabled=autocast),
    ):
        hidden = decoder(inputs_embeds=x_BSD, attention_mask=mask, position_ids=positions, use_cache=False)
    assert hidden.last_hidden_state.requires_grad
    return sum(found.values())


@pytest.mark.parametrize(("tune", "autocast"), [("full", True), ("full", False), ("lora", True), ("projector", True)])
@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
def test_layers_keep_what_the_formula_says(
    family: str, tune: str, autocast: bool, tiny_llava: str, tiny_localizer: str
) -> None:
    """Exact for a layer: what two layers keep and one does not. Its dropout is left out: a CPU keeps more of it."""
    length, kept, said = 77, [], 0
    for layers in (1, 2):
        config = config_of(tiny_llava if family == "llava" else tiny_localizer)
        config.text_config.num_hidden_layers = layers
        if getattr(config.text_config, "layer_types", None):
            config.text_config.layer_types = config.text_config.layer_types[:layers]
        kind = LlavaForConditionalGeneration if family == "llava" else Qwen2VLForConditionalGeneration
        masters = tune == "full" and autocast
        vlm = as_vlm(kind._from_config(config, dtype=torch.float32 if masters else torch.bfloat16))
        choose_trained(vlm, tune, {"rank": 5, "dropout": 0.0} if tune == "lora" else None)
        kept.append(kept_for_backward(vlm, length, autocast))
        said = memory.layer_bytes(vlm, length, 2, autocast) * length
    assert kept[1] - kept[0] == said


def test_how_parts_are_shared_and_recomputed() -> None:
    vlm = skeleton("llava-hf/llava-1.5-7b-hf", torch.bfloat16)
    choose_trained(vlm, "full")
    with torch.device("meta"):
        compressor = Compressor(CompressorConfig(4096))
    batch = Batch.of(8, 576, 68, 2048)
    assert (batch.rows, batch.length, batch.tokens) == (3, 2048, 6144)  # 2048 + 7 x 368 tokens

    def on(processes: int, checkpointing: bool = False) -> Memory:
        return estimate(vlm, [compressor], batch, processes, processes > 1, checkpointing)

    alone, eight, sixteen = on(1), on(8), on(16)
    for part in ("weights", "gradients", "optimizer"):
        assert (
            getattr(alone, part) // 8 == getattr(eight, part) == 2 * getattr(sixteen, part) + getattr(eight, part) % 2
        )
    assert eight.activations == sixteen.activations and eight.copies == sixteen.copies
    assert on(8, True).activations < 0.2 * eight.activations
    assert alone.total == sum(vars(alone).values())
    assert alone.fits(int(alone.total / 0.9) + 1) and not alone.fits(int(alone.total / 0.91))
    unit = sum(one.numel() for one in vlm.decoder.layers[0].parameters())
    root = SIZES["llava-hf/llava-1.5-7b-hf"] + sum(one.numel() for one in compressor.parameters()) - 32 * unit
    assert eight.copies == 2 * (root + root - TOWER + 3 * unit) + 4 * unit
    matrices = sum(one.numel() for one in vlm.decoder.layers.parameters() if one.ndim > 1)
    multiplied = matrices + 32064 * 4096 + (1024 + 4096) * 4096
    compressing = sum(one.numel() for one in compressor.parameters())
    assert alone.copies == 2 * (multiplied + compressing)


def test_the_longest_sample_sets_the_rows() -> None:
    assert Batch.of(1, 256, 256, 2048).tokens == 2048
    assert Batch.of(4, 576, 576, 512).length == 577
