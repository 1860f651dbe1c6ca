"""Static shapes give the tokens and logits of `pruned` and `generate`: any method, family, batch and bucket."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from cropl.grid import TokenGrid
from cropl.metrics.cost import kv_bytes
from cropl.models.vlm import VLM
from cropl.pruning import (
    ILP,
    Dense,
    DivPrune,
    InnerLLM,
    RandomTokens,
    Schedule,
    UniformTokens,
    keep_mask,
    pruned,
    region_mask,
)
from cropl.pruning.static import StaticRunner
from tests.families import FAMILIES, QUESTIONS, pictures
from tests.pruning.rows import alone, request, together
from tests.pruning.test_restore import hooks
from tests.reference.masked import masked_generate
from tests.reference.tiny import FULL, IMAGE, PAD, SIDE, SMALL, WIDE, batch, pixels, prompt, tiny_llava

NEW = 5
TIGHT = (*range(2, 120),)
"""Buckets without any padding for the longest row."""
METHODS: dict[str, InnerLLM] = {
    **{f"ilp-{layer}": ILP(layer) for layer in range(4)},
    "prune": ILP(0, "compact"),
    "ilp-compact": ILP(2, "compact"),
    "dense": Dense(),
    "uniform": UniformTokens(0.2, 2),
    "random": RandomTokens(9, seed=4, layer=1),
    "divprune-0": DivPrune(10, 0),
    "schedule": Schedule([ILP(1), UniformTokens(5, 2)]),
    "schedule-compact": Schedule([ILP(0, "compact"), RandomTokens(4, layer=2, positions="compact")]),
}
ROWS = [prompt(5), prompt(11, before=1, seed=1), prompt(4, images=0, seed=2), prompt(2, seed=3)]
PLACES = [SMALL, WIDE, None, FULL]


def ragged(side: str = "left") -> dict[str, Any]:
    """Three rows with pictures, one of text alone."""
    return {**batch(ROWS, side), "pixel_values": pixels(3)}


def eager(model: Any, method: InnerLLM, inputs: dict[str, Any], **found: Any) -> tuple[Tensor, list[Tensor]]:
    """Ids of `generate` inside `pruned`, and the logits of each step in the model's own type."""
    logits: list[Tensor] = []
    handle = model.get_output_embeddings().register_forward_hook(lambda m, a, out: logits.append(out[:, -1]))
    try:
        with pruned(model, method, **found):
            ids = model.generate(**inputs, max_new_tokens=NEW, do_sample=False)
    finally:
        handle.remove()
    return ids, logits


def static(runner: StaticRunner, inputs: Any, **found: Any) -> tuple[Tensor, list[Tensor]]:
    logits: list[Tensor] = []
    return runner.generate(inputs, **found, watch=lambda x: logits.append(x.clone())), logits


def assert_same(ours: tuple[Tensor, Sequence[Tensor]], theirs: tuple[Tensor, Sequence[Tensor]]) -> None:
    assert ours[0].tolist() == theirs[0].tolist()
    assert len(ours[1]) == len(theirs[1])
    for one, other in zip(ours[1], theirs[1], strict=True):
        torch.testing.assert_close(one, other, atol=1e-9, rtol=1e-9)


@pytest.fixture(scope="module")
def tiny() -> Any:
    return tiny_llava(3, 2)


@pytest.fixture(scope="module", params=FAMILIES)
def vlm(request: pytest.FixtureRequest) -> VLM:
    return FAMILIES[request.param](3)


@pytest.mark.parametrize("name", METHODS)
@pytest.mark.parametrize("buckets", [(96,), (16, 32, 64, 80), TIGHT], ids=["one", "some", "tight"])
@torch.no_grad()
def test_a_ragged_batch_is_answered_as_eagerly(tiny, name, buckets) -> None:
    runner = StaticRunner(tiny, METHODS[name], NEW, buckets, compile=False)
    assert_same(static(runner, ragged(), regions=PLACES), eager(tiny, METHODS[name], ragged(), regions=PLACES))
    last = runner.last
    assert last is not None and all(bucket in buckets for bucket in last.buckets)
    assert all(max(rows) <= bucket for rows, bucket in zip(last.lengths, last.buckets, strict=True))
    if buckets is TIGHT:
        assert [max(rows) for rows in last.lengths] == list(last.buckets)
    assert not last.dilated and last.visual == (64, 64, 0, 64)
    assert last.lengths[-1] == tuple(kept + text for kept, text in zip(last.kept, (8, 12, 7, 5), strict=True))


@pytest.mark.parametrize("text", ["llama", "mistral", "qwen2"])
@pytest.mark.parametrize("layer", [0, 1, 2, 3])
@torch.no_grad()
def test_one_row_is_the_references(text, layer) -> None:
    model = tiny_llava(3, 2, text=text)
    runner = StaticRunner(model, ILP(layer), NEW, compile=False)
    given = {"input_ids": ROWS[0][None], "pixel_values": pixels(1)}
    ours = static(runner, given, regions=[WIDE])
    assert_same(ours, eager(model, ILP(layer), given, regions=[WIDE]))
    if text == "llama":
        features = model.get_image_features(pixel_values=pixels(1)).pooler_output[0]
        keep_S = torch.ones(len(ROWS[0]), dtype=torch.bool)
        keep_S[ROWS[0] == IMAGE] = region_mask(WIDE, TokenGrid.padded_square(SIDE, 1, 1))
        expected = masked_generate(model, ROWS[0], features, keep_S, layer, NEW, compact=False)
        assert ours[0][0, len(ROWS[0]) :].tolist() == expected


@pytest.mark.parametrize("method", [ILP(1), ILP(2, "compact")], ids=["ilp", "compact"])
@torch.no_grad()
def test_every_family(vlm, method) -> None:
    outside, found = getattr(vlm.base, "rope_deltas", None), request(vlm)
    runner = StaticRunner(vlm, method, NEW, (48, 64, 128, 192, 320, 512), compile=False)
    expected = eager(vlm.model, method, together(vlm), **found)
    assert_same(static(runner, together(vlm), **found), expected)
    assert getattr(vlm.base, "rope_deltas", None) is outside
    right, _ = static(runner, together(vlm, "right"), **found)  # which eager steps refuse
    assert right[:, -NEW:].tolist() == expected[0][:, -NEW:].tolist()


@torch.no_grad()
def test_prune_in_every_family(vlm) -> None:
    method, found = ILP(0, "compact"), request(vlm)
    expected = eager(vlm.model, method, together(vlm), **found)
    assert_same(static(StaticRunner(vlm, method, NEW, compile=False), together(vlm), **found), expected)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
@torch.no_grad()
def test_a_batch_is_its_rows_one_by_one(family) -> None:
    vlm = FAMILIES[family](1)
    runner = StaticRunner(vlm, ILP(1), NEW, compile=False)
    found = request(vlm)
    whole, logits = static(runner, together(vlm), **found)
    for row in range(4):
        mine = {key: [value[row]] for key, value in found.items()}
        ids, own = static(runner, alone(vlm, row), **mine)
        assert ids[0, -NEW:].tolist() == whole[row, -NEW:].tolist()
        for one, other in zip(own, logits, strict=True):
            torch.testing.assert_close(one[0], other[row], atol=1e-9, rtol=1e-9)
    again, _ = static(runner, together(vlm), **found)  # on buffers that hold what the rows left
    assert again.tolist() == whole.tolist()


@torch.no_grad()
def test_inputs_of_a_family_bring_their_grids() -> None:
    vlm = FAMILIES["llava_next"](2)
    inputs, regions = vlm.inputs(pictures(), QUESTIONS), [SMALL, WIDE, SMALL]
    expected = eager(vlm.model, ILP(1), inputs.kwargs(), regions=regions, grids=inputs.grids)
    assert_same(static(StaticRunner(vlm, ILP(1), NEW, compile=False), inputs, regions=regions), expected)


@pytest.mark.parametrize("layer", [0, 2])
@torch.no_grad()
def test_answers_that_end_at_different_steps(layer) -> None:
    model = tiny_llava(3, 2)
    free, _ = eager(model, ILP(layer), ragged(), regions=PLACES)
    first = free[:, -NEW:].tolist()
    runner = StaticRunner(model, ILP(layer), NEW, compile=False)
    lengths = set()
    for eos in ([first[0][1]], [first[0][1], first[1][3]], [row[2] for row in first], [99]):
        model.generation_config.eos_token_id = eos if len(eos) > 1 else eos[0]
        assert_same(static(runner, ragged(), regions=PLACES), eager(model, ILP(layer), ragged(), regions=PLACES))
        ids = runner.generate(ragged(), regions=PLACES)
        lengths.add(ids.shape[1] - free.shape[1])
        assert (ids[0, -NEW:] == PAD).any() or eos == [99] or ids.shape[1] < free.shape[1]
    assert len(lengths) > 1  # some stopped early, some did not
    model.generation_config.eos_token_id = None
    short = runner.generate(ragged(), regions=PLACES, max_new_tokens=2)
    assert short.tolist() == free[:, : -NEW + 2].tolist()


@pytest.mark.parametrize("layer", [0, 1, 3])
@torch.no_grad()
def test_buffers_take_what_the_formula_says(tiny, layer) -> None:
    runner = StaticRunner(tiny, ILP(layer), NEW, (16, 32, 80), compile=False)
    runner.generate({"input_ids": torch.stack([ROWS[0]] * 2), "pixel_values": pixels(2)}, regions=[SMALL, SMALL])
    full, kept = 80 + NEW, 16 + NEW  # 72 tokens, and 8 of text with 6 of the region
    positions = layer * full + (3 - layer) * kept
    each = 2 * 2 * 2 * 8 * 8  # rows, keys and values, key heads, width of a head, bytes
    assert runner.last is not None
    assert runner.kv_bytes == kv_bytes(runner.last.cache) == each * positions
    assert runner.last.waste == (80 / 72 if layer == 3 else 16 / 14)
    runner.generate({"input_ids": torch.stack([ROWS[0]] * 2), "pixel_values": pixels(2)}, regions=[SMALL, WIDE])
    more = 0 if layer == 3 else each * (3 - layer) * (32 + NEW)  # the other bucket's, beside the first's
    assert runner.kv_bytes == each * positions + more
    runner.release()
    assert runner.kv_bytes == 0 and runner.last is None


@pytest.mark.parametrize("layer", [0, 2])
@torch.no_grad()
def test_dilated_regions_fill_their_bucket(tiny, layer) -> None:
    grid = TokenGrid.padded_square(SIDE, 3, 2)
    runner = StaticRunner(tiny, ILP(layer), NEW, (32, 80), compile=False, dilate=True)
    plain = StaticRunner(tiny, ILP(layer), NEW, (32, 80), compile=False)
    regions, sizes = [SMALL, WIDE, None, SMALL], [(3, 2)] * 4
    ours = static(runner, ragged(), regions=regions, image_sizes=sizes)
    plain.generate(ragged(), regions=regions, image_sizes=sizes)
    last, exact = runner.last, plain.last
    assert last is not None and exact is not None and last.dilated and not exact.dilated
    assert last.asked == exact.kept and last.buckets == exact.buckets
    assert [length for length, total in zip(last.lengths[-1], last.visual, strict=True) if total] == [32, 32, 32]
    texts = (8, 12, 7, 5)
    grown = [None if one is None else keep_mask(one, grid, 32 - text) for one, text in zip(regions, texts, strict=True)]
    for region, mask in zip(regions, grown, strict=True):
        assert region is None or mask is None or bool((mask | ~region_mask(region, grid)).all())
    assert_same(ours, eager(tiny, ILP(layer), ragged(), keep=grown))


@torch.no_grad()
def test_the_model_is_as_before() -> None:
    model = tiny_llava(3, 2)
    plain, before = model(**ragged()).logits, hooks(model)  # the tower's first run leaves hooks of its own
    state = {name: value.clone() for name, value in model.state_dict().items()}
    runner = StaticRunner(model, ILP(1), NEW, compile=False)
    runner.generate(ragged(), regions=PLACES)
    with pytest.raises(ValueError, match="image size"):  # in the middle of the model's own forward
        runner.generate({**ragged(), "pixel_values": torch.zeros(3, 3, 5, 5)}, regions=PLACES)
    assert hooks(model) == before
    assert torch.equal(model(**ragged()).logits, plain)
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
