"""The identities of every method on every family: with the dense model, with smaller batches, and with itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from cropl.grid import Region, TokenGrid
from cropl.models.vlm import VLM
from cropl.pruning import (
    ILP,
    PLC,
    DivPrune,
    FastV,
    InnerLLM,
    PreLLM,
    PyramidDrop,
    RandomTokens,
    SparseVLM,
    UniformTokens,
    pruned,
)
from tests.families import FAMILIES, LAYERS, QUESTIONS, pictures
from tests.pruning.rows import PLACES, REGIONS, alone, longer, request, together
from tests.pruning.test_plc import compressor
from tests.pruning.test_restore import hooks

METHODS: dict[str, Callable[[], InnerLLM]] = {
    "ilp": lambda: ILP(1),
    "ilp-compact": lambda: ILP(2, "compact"),
    "prune": lambda: ILP(0, "compact"),
    "fastv": lambda: FastV(0.3, 1),
    "sparsevlm": lambda: SparseVLM((0.6, 0.2), (0, 2)),
    "sparsevlm+": lambda: SparseVLM((0.6, 0.3), (0, 1), 0),
    "pyramiddrop": lambda: PyramidDrop(0.5, (1, 2)),
    "divprune": lambda: DivPrune(0.3),
    "uniform": lambda: UniformTokens(0.25, 2),
    "random": lambda: RandomTokens(0.25, 5, 1),
}
EVERYTHING: dict[str, Callable[[], InnerLLM]] = {
    "ilp": lambda: ILP(1),
    "ilp-compact": lambda: ILP(2, "compact"),
    "prune": lambda: ILP(0, "compact"),
    "fastv": lambda: FastV(1.0, 1),
    "sparsevlm": lambda: SparseVLM((1.0, 1.0), (0, 2)),
    "sparsevlm+": lambda: SparseVLM((1.0, 1.0), (0, 1), 0),
    "pyramiddrop": lambda: PyramidDrop(1.0, (1, 2)),
    "divprune": lambda: DivPrune(1.0),
    "uniform": lambda: UniformTokens(1.0, 2),
    "random": lambda: RandomTokens(1.0, 5, 1),
}
NOTHING_LEFT_TO_PRUNE: dict[str, Callable[[], InnerLLM]] = {
    "ilp": lambda: ILP(LAYERS),
    "ilp-compact": lambda: ILP(LAYERS, "compact"),
    "fastv": lambda: FastV(0.3, LAYERS),
    "sparsevlm": lambda: SparseVLM((0.2,), (LAYERS - 1,)),
    "sparsevlm+": lambda: SparseVLM((0.2,), (LAYERS - 1,), 0),
    "pyramiddrop": lambda: PyramidDrop(0.5, (LAYERS,)),
    "divprune": lambda: DivPrune(0.3, LAYERS),
    "uniform": lambda: UniformTokens(0.25, LAYERS),
    "random": lambda: RandomTokens(0.25, 5, LAYERS),
}


@pytest.fixture(scope="module", params=FAMILIES)
def vlm(request: pytest.FixtureRequest) -> VLM:
    return FAMILIES[request.param](3)


def method_of(vlm: VLM, name: str) -> InnerLLM | PreLLM:
    if name != "plc":
        return METHODS[name]()
    if not has_plain_grids(vlm):
        pytest.skip("refused, as test_plc_needs_plain_grids tests")
    return PLC(compressor(9, width=vlm.decoder.config.hidden_size))


def has_plain_grids(vlm: VLM) -> bool:
    return all(isinstance(grid, TokenGrid) for grid in request(vlm)["grids"])


def greedy(vlm: VLM, **options: Any) -> dict[str, Any]:
    return {"max_new_tokens": 4, "do_sample": False, "suppress_tokens": [vlm.image_token_id], **options}


@pytest.mark.parametrize("name", METHODS)
@torch.no_grad()
def test_keeping_everything_is_the_dense_model(vlm, name) -> None:
    kwargs = together(vlm)
    plain = vlm.model(**kwargs).logits
    with pruned(vlm, EVERYTHING[name](), **request(vlm, [Region.full()] * 4)) as patch:
        assert torch.equal(vlm.model(**kwargs).logits, plain)
    assert torch.equal(patch.kept_B, patch.visual_B)
    if name in NOTHING_LEFT_TO_PRUNE:
        with pruned(vlm, NOTHING_LEFT_TO_PRUNE[name](), **request(vlm)):
            assert torch.equal(vlm.model(**kwargs).logits, plain)


@pytest.mark.parametrize("name", [*METHODS, "plc"])
@torch.no_grad()
def test_a_ragged_batch_is_its_rows_one_by_one(vlm, name) -> None:
    found = request(vlm)
    rows: dict[str, Tensor] = {}
    for side in ("left", "right"):
        with pruned(vlm, method_of(vlm, name), **found) as patch:
            rows[side] = vlm.model(**together(vlm, side), use_cache=side == "left").logits
            kept = patch.kept_B.tolist()
        assert kept[2] == 0 and all(kept[row] < int(patch.visual_B[row]) for row in PLACES)
        for row in range(4):
            real = patch.survivors_BM[row] >= 0
            rows[f"{side}{row}"] = rows[side][row, real]
    for row in range(4):
        one = {key: value[row : row + 1] for key, value in found.items()}
        with pruned(vlm, method_of(vlm, name), **one) as patch:
            expected = vlm.model(**alone(vlm, row)).logits[0]
        assert patch.kept_B.tolist() == [kept[row]]
        for side in ("left", "right"):
            torch.testing.assert_close(rows[f"{side}{row}"], expected, atol=5e-5, rtol=1e-4)


class Recorded(InnerLLM):
    """A method's decisions, taken once and repeated for longer prompts: what `uncached` means for one that ranks."""

    def __init__(self, method: InnerLLM) -> None:
        self.method, self.positions = method, method.positions
        self.kept: dict[int, Tensor] = {}
        self.made: dict[int, Tensor] = {}
        self.layer, self.again = 0, False

    name = "recorded"
    layers = property(lambda self: self.method.layers)
    watches = property(lambda self: () if self.again else self.method.watches)
    needs_request = property(lambda self: self.method.needs_request)

    def keep(self, view):
        self.layer = view.layer
        if not self.again:
            self.kept[view.layer] = self.method.keep(view)
        keep_BS = self.kept[view.layer]
        return torch.nn.functional.pad(keep_BS, (0, view.visual_BS.shape[1] - keep_BS.shape[1]), value=True)

    def rewrite(self, hidden_BMD, visual_BM):
        if not self.again:
            made = self.method.rewrite(hidden_BMD, visual_BM)
            if made is not hidden_BMD:
                self.made[self.layer] = made[visual_BM]
            return made
        made = self.made.get(self.layer)
        return hidden_BMD if made is None else hidden_BMD.masked_scatter(visual_BM[..., None], made)


@pytest.mark.parametrize("name", [*METHODS, "plc"])
@torch.no_grad()
def test_decoding_on_the_pruned_cache_is_a_prefill_of_everything(vlm, name) -> None:
    kwargs, found, method = together(vlm), request(vlm), method_of(vlm, name)
    method = Recorded(method) if isinstance(method, InnerLLM) else method
    token_BT = torch.randint(3, 30, (4, 3), generator=torch.Generator().manual_seed(0))
    steps = []
    with pruned(vlm, method, **found):
        cache = vlm.model(**kwargs).past_key_values
        for step in range(3):
            mask = longer(kwargs, token_BT[:, : step + 1])["attention_mask"]
            out = vlm.model(input_ids=token_BT[:, step, None], past_key_values=cache, attention_mask=mask)
            steps.append(out.logits[:, 0])
    if isinstance(method, Recorded):
        method.again = True
    with pruned(vlm, method, **found):
        whole = vlm.model(**longer(kwargs, token_BT), use_cache=False).logits[:, -3:]
    torch.testing.assert_close(torch.stack(steps, 1), whole, atol=5e-5, rtol=1e-4)


@pytest.mark.parametrize("name", [*METHODS, "plc"])
@torch.no_grad()
def test_generation_in_a_batch_is_that_of_each_row(vlm, name) -> None:
    found, beams = request(vlm), {"num_beams": 2, "num_return_sequences": 2}
    with pruned(vlm, method_of(vlm, name), **found) as patch:
        batch = vlm.model.generate(**together(vlm), **greedy(vlm))[:, -4:]
        searched = vlm.model.generate(**together(vlm), **greedy(vlm, **beams))[:, -4:]
        assert patch.kept_B.tolist() == patch.kept_B[::2].repeat_interleave(2).tolist()
    for row in (1, 2):
        one = {key: value[row : row + 1] for key, value in found.items()}
        with pruned(vlm, method_of(vlm, name), **one):
            assert torch.equal(vlm.model.generate(**alone(vlm, row), **greedy(vlm))[0, -4:], batch[row])
            ours = vlm.model.generate(**alone(vlm, row), **greedy(vlm, **beams))[:, -4:]
            assert torch.equal(ours, searched[2 * row : 2 * row + 2])


@pytest.mark.parametrize("name", [*METHODS, "plc"])
@torch.no_grad()
def test_every_layer_caches_what_it_saw_and_the_model_is_restored(vlm, name) -> None:
    kwargs, plain, before = alone(vlm, 1), vlm.model(**alone(vlm, 1)).logits, hooks(vlm.model)
    attributes = {id(module): set(vars(module)) for module in vlm.model.modules()}
    weights = {key: value.clone() for key, value in vlm.model.state_dict().items()}
    deltas = getattr(vlm.base, "rope_deltas", None)
    found = {key: value[1:2] for key, value in request(vlm).items()}
    with pruned(vlm, method_of(vlm, name), **found) as patch:
        cache = vlm.model(**kwargs).past_key_values
        vlm.model.generate(**alone(vlm, 2), **greedy(vlm))
        vlm.model(**kwargs)
    text = kwargs["input_ids"].shape[1] - int(patch.visual_B[0])
    assert [layer.keys.shape[-2] for layer in cache.layers] == [text + count for count in patch.visual_BL[0].tolist()]
    assert getattr(vlm.base, "rope_deltas", None) is deltas
    assert hooks(vlm.model) == before
    assert {id(module): set(vars(module)) for module in vlm.model.modules()} == attributes
    assert all(torch.equal(value, weights[key]) for key, value in vlm.model.state_dict().items())
    assert torch.equal(vlm.model(**kwargs).logits, plain)


@torch.no_grad()
def test_regions_find_the_grids_of_the_forward(vlm) -> None:
    inputs, regions = vlm.inputs(pictures(), QUESTIONS), [REGIONS[row] for row in PLACES]
    with pruned(vlm, ILP(1), regions=regions, grids=inputs.grids) as patch:
        expected, kept = vlm.model(**inputs.kwargs()).logits, patch.kept_B
        searched = vlm.model.generate(**inputs.kwargs(), **greedy(vlm, num_beams=2))
    with pruned(vlm, ILP(1), regions=regions, image_sizes=inputs.image_sizes) as patch:
        assert torch.equal(vlm.model(**inputs.kwargs()).logits, expected) and torch.equal(patch.kept_B, kept)
        assert torch.equal(vlm.model.generate(**inputs.kwargs(), **greedy(vlm, num_beams=2)), searched)
        assert torch.equal(patch.kept_B, kept.repeat_interleave(2))


@torch.no_grad()
def test_plc_needs_plain_grids(vlm) -> None:
    plc = PLC(compressor(9, width=vlm.decoder.config.hidden_size))
    found = {key: value[1:2] for key, value in request(vlm).items()}
    with pruned(vlm, plc, **found) as patch:
        if has_plain_grids(vlm):
            vlm.model(**alone(vlm, 1))
            assert patch.kept_B.tolist() == [11]
        else:
            with pytest.raises(ValueError, match="one plain grid"):
                vlm.model(**alone(vlm, 1))
