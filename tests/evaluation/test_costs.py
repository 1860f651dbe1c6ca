"""What a localizer costs, against the operations that it does: every way to read a region off, both families."""

from __future__ import annotations

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from cropl.evaluation import costs
from cropl.evaluation.run import run_study
from cropl.evaluation.study import Study
from cropl.metrics.cost import attention_flops
from cropl.models import localizer as localizing
from cropl.models.localizer import Localizer
from cropl.models.vlm import load_vlm
from cropl.modules.localizer import LocalizerModule
from cropl.prompt import RegionCodec
from cropl.testbed.build import build_qwen2_vl
from cropl.testbed.samples import samples as scenes
from tests.reference.qwen2_5_vl import build_qwen2_5_vl

BUILD = {"qwen2_vl": build_qwen2_vl, "qwen2_5_vl": build_qwen2_5_vl}


@pytest.fixture(scope="module", params=list(BUILD))
def folder(request, tmp_path_factory):
    """An untrained localizer's checkpoint."""
    base = BUILD[request.param](tmp_path_factory.mktemp(request.param), layers=2, width=64)
    LocalizerModule(str(base)).export(target := tmp_path_factory.mktemp("localizer"))
    return str(target)


def counted(localizer, sample):
    """FLOPs of one question, the prompt's tokens, and the positions of each forward after that."""
    lengths = []
    hook = localizer.vlm.decoder.register_forward_hook(lambda m, a, out: lengths.append(out[0].shape[1]))
    try:
        with FlopCounterMode(display=False) as counter:
            localizer.locate([sample.image], [sample.question])
    finally:
        hook.remove()
    return counter.get_total_flops(), lengths[0], lengths[1:]


def told(localizer, sample):
    """What is reported for that question, and with all pairs of the prompt, as eager attention computes them."""
    flops, _ = costs._localizer_cost(localizer, [sample])
    _, length, _ = counted(localizer, sample)
    return flops, flops + attention_flops(localizer.vlm.decoder.config, [length] * localizer.vlm.num_layers)


@pytest.mark.parametrize("readout", ["greedy", "coverage:0.9", "most_probable"])
def test_a_localizer_costs_what_it_computes(folder, readout):
    localizer = Localizer.from_pretrained(folder, readout=readout, attn_implementation="eager")
    sample = scenes("test", 1)[0]
    done, _, after = counted(localizer, sample)
    assert after == ([costs.TREE] if readout == "most_probable" else [1, 1, 1]) and costs.TREE == 360
    assert told(localizer, sample)[1] == done


def test_all_readings_of_the_distribution_cost_its_tree(folder):
    sample = scenes("test", 1)[0]
    of = {
        readout: costs._localizer_cost(Localizer.from_pretrained(folder, readout=readout), [sample])[0]
        for readout in ("greedy", "coverage:0.9", "most_probable", "expected_recall:0.94")
    }
    assert of["greedy"] == of["coverage:0.9"] < of["most_probable"] == of["expected_recall:0.94"]


def test_digits_cost_a_row_of_the_vocabulary_each(folder, monkeypatch):
    """An untrained model writes what it likes: it is made to write as many tokens as an answer has, and its end."""
    localizer = Localizer.from_pretrained(
        folder, codec=RegionCodec("digits"), readout="greedy", attn_implementation="eager"
    )
    answer = localizer.vlm.tokenizer("7 7 7 7.", add_special_tokens=False)["input_ids"]
    sample = scenes("test", 1)[0]
    monkeypatch.setattr(localizing, "MAX_NEW_TOKENS", len(answer) + 1)
    localizer.vlm.model.generation_config.eos_token_id = None
    done, _, after = counted(localizer, sample)
    assert after == [1] * len(answer)
    assert told(localizer, sample)[1] == done


def test_a_study_with_either_family(folder, tiny_llava):
    arms = [{"method": "ilp", "region_source": "predicted", "layer": 1, "budget": 16}]
    config = {"model": "m", "localizer": "l", "data": {"class_path": "a.b"}, "arms": arms, "max_new_tokens": 1}
    questions = scenes("test", 2)
    table = {}
    for readout in ("greedy", "most_probable"):
        localizer = Localizer.from_pretrained(folder, readout=readout)
        results = run_study(Study.from_config(config), questions, load_vlm(tiny_llava), localizer).results
        table[readout] = results["rows"][1]["prefill_flops_with_localizer"]
        assert table[readout] > results["rows"][1]["prefill_flops_with_vision"] > 0
    assert table["most_probable"] > table["greedy"]


def test_a_model_with_windows_answers_with_a_cost(tmp_path):
    vlm = load_vlm(str(build_qwen2_5_vl(tmp_path)))
    config = {"model": "m", "data": {"class_path": "a.b"}, "arms": [{"method": "dense"}], "max_new_tokens": 1}
    row = run_study(Study.from_config(config), scenes("test", 2), vlm).results["rows"][0]
    assert row["prefill_flops_with_vision"] > row["prefill_flops"] > 0 and torch.is_grad_enabled()
