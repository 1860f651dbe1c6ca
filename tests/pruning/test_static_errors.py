"""What the static path refuses, with the remedy; and how rows are laid out in buckets."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cropl.pruning import (
    ILP,
    PLC,
    DivPrune,
    FastV,
    Hybrid,
    NotSupportedError,
    PruningError,
    Schedule,
    SparseVLM,
    UniformTokens,
    VisionZip,
    pruned,
)
from cropl.pruning.buckets import BUCKETS, Layout, bucket_of, check_buckets
from cropl.pruning.static import StaticRunner
from tests.pruning.test_plc import compressor
from tests.reference.tiny import SMALL, WIDE, batch, pixels, prompt, tiny_llava


def runner(model: Any, **options: Any) -> StaticRunner:
    return StaticRunner(model, ILP(1), **{"max_new_tokens": 2, "compile": False, **options})


def test_a_prompt_longer_than_the_largest_bucket(model, inputs) -> None:
    with pytest.raises(PruningError, match=r"72 tokens .* largest bucket, 64: .*buckets=\(\.\.\., 128\)"):
        runner(model, buckets=(32, 64)).generate(inputs, regions=[SMALL])
    before = StaticRunner(model, ILP(0), 2, (32, 64), compile=False)  # pruned before the first layer, it fits
    assert before.generate(inputs, regions=[SMALL]).shape == (1, 74)


@pytest.mark.parametrize(
    "method",
    [
        FastV(9, 1),
        SparseVLM((0.5,), (0,)),
        SparseVLM((0.5,), (0,), 0),
        Hybrid(9, 1),
        Schedule([ILP(1), FastV(5, 2)]),
        VisionZip(9),
        PLC(compressor(9, width=32)),
    ],
    ids=lambda method: type(method).__name__,
)
def test_methods_that_need_what_layers_compute(model, method) -> None:
    with pytest.raises(NotSupportedError, match=r"use pruned\(\.\.\.\) for this one"):
        StaticRunner(model, method, 2, compile=False)


@pytest.mark.parametrize("method", [DivPrune(9, 1), Hybrid(9, 1, by="diversity", outside_by="uniform")])
def test_methods_that_turn_out_to_need_it(model, inputs, method) -> None:
    with pytest.raises(NotSupportedError, match="chooses by what the layers in front of it compute"):
        StaticRunner(model, method, 2, compile=False).generate(inputs, regions=[SMALL])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"max_new_tokens": 0}, "at least 1"),
        ({"buckets": ()}, "ascending lengths"),
        ({"buckets": (64, 32)}, "ascending lengths"),
        ({"buckets": (1, 32)}, "at least 2"),
        ({"buckets": (32, 64.0)}, "ascending lengths"),
        ({"compile": 3}, "reduce-overhead"),
        ({"method": UniformTokens(4), "dilate": True}, "UniformTokens keeps other tokens: use ILP"),
        ({"method": ILP(4)}, "choose ascending layers from 0"),
        ({"method": "ilp"}, "must be an InnerLLM"),
    ],
)
def test_arguments_that_do_not_fit(model, options, message) -> None:
    with pytest.raises(ValueError, match=message):
        StaticRunner(model, **{"method": ILP(1), "max_new_tokens": 2, "compile": False, **options})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ({}, "needs regions"),
        ({"regions": [SMALL], "max_new_tokens": 3}, "room for 1 to 2"),
        ({"regions": [SMALL, WIDE]}, "give one per row"),
        ({"keep": [torch.zeros(64, dtype=torch.bool)]}, "no visual token"),
    ],
)
def test_calls_that_do_not_fit(model, inputs, call, message) -> None:
    with pytest.raises(ValueError, match=message):
        runner(model).generate(inputs, **call)


def test_a_row_without_tokens(model) -> None:
    rows = {**batch([prompt(5), prompt(3, images=0)]), "pixel_values": pixels(1)}
    rows["attention_mask"][1] = 0
    with pytest.raises(ValueError, match="row 1 is empty"):
        runner(model).generate(rows, regions=[SMALL, None])


def test_keep_cannot_be_dilated(model, inputs) -> None:
    with pytest.raises(ValueError, match="give regions, or a runner without dilate"):
        runner(model, dilate=True).generate(inputs, keep=[torch.ones(64, dtype=torch.bool)])


@pytest.mark.parametrize("name", ["repetition_penalty", "no_repeat_ngram_size", "suppress_tokens", "num_beams"])
def test_generation_configs_that_are_not_greedy(model, inputs, name) -> None:
    ready = runner(model)
    setattr(model.generation_config, name, [5] if name == "suppress_tokens" else 2)
    with pytest.raises(NotSupportedError, match=rf"set model\.generation_config\.{name} = None"):
        ready.generate(inputs, regions=[SMALL])
    setattr(model.generation_config, name, None)
    model.generation_config.do_sample = True  # an answer is greedy whatever this says, as that of `VLM.generate`
    ready.generate(inputs, regions=[SMALL])


def test_models_that_do_not_fit(model, inputs) -> None:
    ready = runner(model)
    with pruned(model, ILP(1), regions=[SMALL]), pytest.raises(PruningError, match="leave the context first"):
        ready.generate(inputs, regions=[SMALL])
    with pytest.raises(NotSupportedError, match='attn_implementation="sdpa"'):
        runner(tiny_llava(2, attention="eager"))
    model.model.language_model.rotary_emb.rope_type = "dynamic"
    with pytest.raises(NotSupportedError, match="rope type 'dynamic'"):
        runner(model)
    with pytest.raises(NotSupportedError, match="on one device"):
        runner(tiny_llava(2).to("meta"))


@given(st.integers(1, 4096))
def test_default_buckets_waste_little(length) -> None:
    bucket = bucket_of(length, check_buckets(BUCKETS))
    assert bucket >= length
    assert length <= 64 or (bucket - length) / bucket < 1 / 3
    assert length <= 1024 or (bucket - length) / bucket <= 1 / 5


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 4), st.integers(1, 12), st.integers(0, 6), st.integers(0, 6))
def test_layouts_hold_the_kept_tokens_in_order(seed, rows, length, spare, more) -> None:
    generator = torch.Generator().manual_seed(seed)
    before_BS = torch.rand(rows, length, generator=generator) < 0.8
    before_BS[:, 0] = True
    keep_BS = before_BS & (torch.rand(rows, length, generator=generator) < 0.6)
    keep_BS[:, 0] = True
    x_BSD = torch.rand(rows, length, 2, generator=generator)
    position = torch.arange(3 * rows * length).view(3, rows, length)

    def laid(mask_BS: torch.Tensor, extra: int) -> Layout:
        counts = mask_BS.sum(1).tolist()
        return Layout.of(mask_BS, counts, max(counts) + extra)

    earlier, layout = laid(before_BS, spare), laid(keep_BS, more)
    taken, through = layout.take(x_BSD), layout.take_from(earlier, earlier.take(x_BSD))
    for row, mask_S in enumerate(keep_BS):
        expected = x_BSD[row, mask_S]
        count = len(expected)
        assert layout.lengths[row] == count == int(layout.length_B[row])
        assert torch.equal(taken[row, :count], expected) and torch.equal(through[row, :count], expected)
        assert torch.equal(layout.last(taken)[row], expected[-1])
        assert torch.equal(layout.places(position)[:, row, :count], position[:, row, mask_S])
