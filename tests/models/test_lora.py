"""LoRA: adapters alone train, old rows of the embedding table stay bit for bit, and merging changes nothing."""

from __future__ import annotations

import sys

import pytest
import torch
from transformers import AutoModelForImageTextToText

from cropl.grid import Region
from cropl.models import lora
from cropl.models.export import plain_model, write_checkpoint
from cropl.models.vlm import load_vlm
from cropl.pruning import ILP, pruned
from cropl.testbed.samples import samples
from tests.reference.checkpoints import tiny_llava as tiny_llava
from tests.reference.checkpoints import tiny_localizer as tiny_localizer


@pytest.fixture(params=["llava", "qwen2_vl"])
def vlm(request, tiny_llava, tiny_localizer):
    return load_vlm({"llava": tiny_llava, "qwen2_vl": tiny_localizer}[request.param], dtype=torch.float32)


def _inputs(vlm, count=2):
    asked = samples("train", count)
    return vlm.inputs([one.picture() for one in asked], [one.question for one in asked]).kwargs()


def _logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


def _ids(vlm):
    """Two tokens: coordinates, or what LLaVA's prompts end with."""
    known = "<x_0>" in vlm.tokenizer.get_vocab()
    return vlm.tokenizer.convert_tokens_to_ids(["<x_0>", "<y_7>"]) if known else vlm.prompt_ids("How many?")[-2:]


def _train(vlm, steps=3):
    """Some steps of AdamW without weight decay on embeddings, as modules train."""
    inputs = _inputs(vlm)
    target = torch.tensor(_ids(vlm))
    optimizer = torch.optim.AdamW([p for p in vlm.model.parameters() if p.requires_grad], lr=0.02, weight_decay=0.0)
    vlm.model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        logits = vlm.model(**inputs).logits[:, -1]
        torch.nn.functional.cross_entropy(logits, target).backward()
        optimizer.step()
    vlm.model.eval()


def test_a_model_with_new_adapters_answers_as_before(vlm):
    inputs = _inputs(vlm)
    before = _logits(vlm.model, inputs)
    lora.add_lora(vlm, rank=4, alpha=8, dropout=0.5)
    lora.train_rows(vlm, _ids(vlm))
    assert torch.equal(_logits(vlm.model, inputs), before)
    trained = {name for name, p in vlm.model.named_parameters() if p.requires_grad}
    assert len([name for name in trained if "lora_" in name]) == 2 * 7 * vlm.num_layers
    assert all("lora_" in name or name.endswith("0.rows") for name in trained)


def test_only_adapters_and_new_rows_change(vlm):
    lora.add_lora(vlm, rank=4, alpha=8)
    ids = _ids(vlm)
    lora.train_rows(vlm, ids)
    before = {name: p.clone() for name, p in vlm.model.named_parameters()}
    table = vlm.model.get_input_embeddings().weight.clone()
    _train(vlm)
    changed = {name for name, p in vlm.model.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {name for name, p in vlm.model.named_parameters() if p.requires_grad}
    now, head = vlm.model.get_input_embeddings().weight, vlm.model.get_output_embeddings().weight
    old = torch.ones(len(table), dtype=torch.bool)
    old[ids] = False
    assert torch.equal(now[old], table[old])
    if vlm.model.config.tie_word_embeddings:
        assert torch.equal(now, head) and not torch.equal(now[~old], table[~old])
    else:
        assert not torch.equal(now[~old], head[~old])


@pytest.mark.parametrize("with_rows", [False, True])
def test_the_merged_export_answers_as_the_model_with_adapters(vlm, with_rows, tmp_path):
    lora.add_lora(vlm, rank=4, alpha=8, targets=["q_proj", "down_proj"])
    if with_rows:
        lora.train_rows(vlm, _ids(vlm))
    _train(vlm)
    inputs = _inputs(vlm)
    before = {name: value.clone() for name, value in vlm.model.state_dict().items()}
    expected = _logits(vlm.model, inputs)
    write_checkpoint(vlm, tmp_path / "out")
    loaded = load_vlm(str(tmp_path / "out"), dtype=torch.float32)
    assert not lora.has_lora(loaded.model)
    assert (_logits(loaded.model, inputs) - expected).abs().max() < 1e-5
    plain = AutoModelForImageTextToText.from_pretrained(tmp_path / "out", dtype=torch.float32)
    assert torch.equal(_logits(plain, inputs), _logits(loaded.model, inputs))
    assert (_logits(plain_model(vlm), inputs) - expected).abs().max() < 1e-5
    after = vlm.model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)


def test_adapters_are_float32_beside_a_half_precision_base(tiny_localizer):
    vlm = load_vlm(tiny_localizer, dtype=torch.bfloat16)
    lora.add_lora(vlm, rank=2)
    lora.train_rows(vlm, _ids(vlm))
    assert {p.dtype for p in vlm.model.parameters() if p.requires_grad} == {torch.float32}
    assert {p.dtype for p in vlm.model.parameters() if not p.requires_grad} == {torch.bfloat16}
    _train(vlm, steps=1)
    assert _logits(vlm.model, _inputs(vlm)).dtype == torch.bfloat16
    assert {p.dtype for p in plain_model(vlm).parameters()} == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_merged_weights_are_rounded_once(tiny_localizer, dtype):
    """To what is asked for, not to the base's precision before."""
    vlm = load_vlm(tiny_localizer, dtype=torch.bfloat16)
    lora.add_lora(vlm, rank=2, alpha=6, targets=["q_proj"])
    lora.train_rows(vlm, _ids(vlm))
    with torch.no_grad():
        for parameter in vlm.model.parameters():
            if parameter.requires_grad:
                parameter.normal_()
    state = vlm.model.state_dict()
    plain = lora.plain_state(vlm.model, state, dtype)
    (name, *_) = (name for name in plain if name.endswith("q_proj.weight"))
    base, down, up = (
        state[name.replace("weight", part)].float()
        for part in ("base_layer.weight", "lora_A.default.weight", "lora_B.default.weight")
    )
    assert plain[name].dtype == dtype and torch.equal(plain[name], (base + 3 * (up @ down)).to(dtype))
    assert not torch.equal(plain[name], plain[name].bfloat16().to(dtype))
    table = next(value for name, value in plain.items() if name.endswith("embed_tokens.weight"))
    rows = next(value for name, value in state.items() if name.endswith("0.rows"))
    assert torch.equal(table[_ids(vlm)], rows.to(dtype))
    assert {value.dtype for value in lora.plain_state(vlm.model, state).values()} == {torch.bfloat16}
    assert torch.equal(plain_model(vlm, dtype).state_dict()[name], plain[name])


def test_a_model_with_adapters_is_pruned_as_its_merged_one(tiny_llava):
    vlm = load_vlm(tiny_llava, dtype=torch.float32)
    lora.add_lora(vlm, rank=4)
    _train(vlm)
    inputs = _inputs(vlm)
    regions = [Region(0, 0, 3, 3), Region(2, 2, 7, 7)]
    with pruned(vlm.model, ILP(layer=1), regions=regions):
        expected = _logits(vlm.model, inputs)
    plain = plain_model(vlm)
    with pruned(plain, ILP(layer=1), regions=regions):
        assert (_logits(plain, inputs) - expected).abs().max() < 1e-5
    assert expected.shape[1] < inputs["input_ids"].shape[1]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"targets": ["q_proj", "c_attn"]}, "no linear layer 'c_attn'; it has down_proj, gate_proj"),
        ({"targets": []}, "name linear layers"),
        ({"rank": 0}, "rank of at least 1"),
        ({"dropout": 1.0}, "dropout from 0"),
    ],
)
def test_mistakes_are_told(tiny_llava, options, message):
    vlm = load_vlm(tiny_llava)
    with pytest.raises(ValueError, match=message):
        lora.add_lora(vlm, **options)
    assert all(p.requires_grad for p in vlm.model.parameters()) and not lora.has_lora(vlm.model)


def test_a_second_time_is_an_error(tiny_llava):
    vlm = load_vlm(tiny_llava)
    lora.add_lora(vlm, rank=2)
    with pytest.raises(ValueError, match="adapters already"):
        lora.add_lora(vlm, rank=2)
    with pytest.raises(ValueError, match="not all among"):
        lora.train_rows(vlm, [10**6])
    lora.train_rows(vlm, [3])
    with pytest.raises(ValueError, match="trained already"):
        lora.train_rows(vlm, [3])


def test_without_peft_it_says_how_to_get_it(tiny_llava, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"pip install 'peft<"):
        lora.add_lora(load_vlm(tiny_llava))
