"""Token maps of sizes alone: those that `inputs` tells, in every family, without a forward of anything."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cropl.models.vlm import as_vlm
from tests.families import FAMILIES, llava_next, under

BUILDERS = {**FAMILIES, "llava_next_fixed": lambda dtype: under("fixed", llava_next(dtype=dtype))}


@pytest.fixture(scope="module", params=sorted(BUILDERS))
def vlm(request):
    return BUILDERS[request.param](dtype=torch.float32)


@settings(max_examples=15, deadline=None)
@given(sizes=st.lists(st.tuples(st.integers(8, 400), st.integers(8, 400)), min_size=1, max_size=3))
def test_maps_are_those_of_inputs(vlm, sizes) -> None:
    made = vlm.inputs([Image.new("RGB", size) for size in sizes], ["?"] * len(sizes))
    assert list(vlm.token_maps(sizes)) == list(made.grids)
    assert [grid.num_tokens for grid in made.grids] == vlm.visual_mask(made.tensors["input_ids"]).sum(1).tolist()


def test_nothing_is_run(vlm, monkeypatch) -> None:
    def run(*_: object, **__: object) -> None:
        raise AssertionError("a module was called")

    monkeypatch.setattr(torch.nn.Module, "__call__", run)
    with pytest.raises(AssertionError, match="was called"):
        vlm.encode_images([Image.new("RGB", (64, 40))])
    assert len(vlm.token_maps([(64, 40), (40, 90)])) == 2
    assert list(vlm.token_maps([])) == []


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl", "internvl"])
def test_what_the_processor_decides_needs_it(family) -> None:
    bare = as_vlm(FAMILIES[family](dtype=torch.float32).model)
    with pytest.raises(ValueError, match="has no processor"):
        bare.token_maps([(64, 40)])


def test_an_image_that_qwen_refuses() -> None:
    vlm = FAMILIES["qwen2_vl"](dtype=torch.float32)
    for ask in (lambda: vlm.token_maps([(2010, 10)]), lambda: vlm.inputs([Image.new("RGB", (2010, 10))], ["?"])):
        with pytest.raises(ValueError, match="aspect ratio"):
            ask()
