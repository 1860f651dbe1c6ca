"""Hybrids of region and score, and schedules of several methods: references, identities, batches, generation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cropl.grid import Region, TokenGrid
from cropl.pruning import ILP, Dense, DivPrune, FastV, Hybrid, PyramidDrop, Schedule, SparseVLM, pruned, region_mask
from cropl.pruning.select import spread
from tests.families import FAMILIES, QUESTIONS, pictures
from tests.reference import staged
from tests.reference.tiny import FULL, SIDE, SMALL, WIDE, batch, pixels, prompt, tiny_llava

BEFORE = 3
"""Text tokens in front of the image."""
INSIDE = {i for i, kept in enumerate(region_mask(WIDE, TokenGrid.padded_square(SIDE, 1, 1)).tolist()) if kept}


def in_region(living: staged.Living) -> list[int]:
    """Living visual tokens of the region WIDE; positions are the original ones."""
    return [i for i in living.visual if int(living.position_S[i]) - BEFORE in INSIDE]


def choose(by: str, living: staged.Living, among: list[int], count: int) -> list[int]:
    if by == "attention":
        return staged.top(living.before_HSS.mean(0)[-1].tolist(), among, count)
    if by == "diversity":
        return [among[i] for i in staged.divprune(living.x_SD[among], count)] if count else []
    return [among[-(-i * len(among) // count)] for i in range(count)]


def hybrid(layer: int, inside: int, outside: int, by: str, outside_by: str) -> staged.Decide:
    def decide(index: int, living: staged.Living) -> tuple[list[int], None] | None:
        if index != layer:
            return None
        mine = in_region(living)
        others = [i for i in living.visual if i not in mine]
        return sorted(choose(by, living, mine, inside) + choose(outside_by, living, others, outside)), None

    return decide


def ilp(layer: int) -> staged.Decide:
    return lambda index, living: (in_region(living), None) if index == layer else None


def both(*deciders: staged.Decide) -> staged.Decide:
    def decide(index: int, living: staged.Living) -> Any:
        return next((made for one in deciders if (made := one(index, living)) is not None), None)

    return decide


# WIDE has 16 of the 64 tokens.
CASES: dict[str, tuple[Callable[[], Any], Callable[[], staged.Decide]]] = {
    "attention": (lambda: Hybrid(10, 2, 0.25), lambda: hybrid(2, 7, 3, "attention", "uniform")),
    "region-only": (lambda: Hybrid(10, 1, 0), lambda: hybrid(1, 10, 0, "attention", "uniform")),
    "small-region": (lambda: Hybrid(40, 1, 0), lambda: hybrid(1, 16, 0, "attention", "uniform")),
    "rest-outside": (
        lambda: Hybrid(0.5, 1, 0.1, "uniform", "attention"), lambda: hybrid(1, 16, 16, "uniform", "attention"),
    ),
    "diversity": (
        lambda: Hybrid(12, 2, 0.5, "diversity", "diversity"), lambda: hybrid(2, 6, 6, "diversity", "diversity"),
    ),
    "before-the-llm": (lambda: Hybrid(9, 0, 0.2, "uniform"), lambda: hybrid(0, 7, 2, "uniform", "uniform")),
    "ilp+fastv": (lambda: Schedule([ILP(1), FastV(5, 3)]), lambda: both(ilp(1), staged.fastv(3, 5))),
    "ilp+fastv-next": (lambda: Schedule([ILP(1), FastV(5, 2)]), lambda: both(ilp(1), staged.fastv(2, 5))),
    "hybrid+fastv": (
        lambda: Schedule([Hybrid(20, 1, 0.4), FastV(0.1, 3)]),
        lambda: both(hybrid(1, 12, 8, "attention", "uniform"), staged.fastv(3, 6)),
    ),
    "fastv+ilp": (lambda: Schedule([FastV(30, 1), ILP(3)]), lambda: both(staged.fastv(1, 30), ilp(3))),
    "ilp+sparsevlm": (
        lambda: Schedule([ILP(1), SparseVLM((8, 4), (1, 2), 0)]),
        lambda: both(ilp(1), staged.sparsevlm([1, 2], [8, 4], 0)),
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_logits_are_those_of_the_reference(case, use_cache) -> None:
    model, (method, decide) = tiny_llava(4, 2), CASES[case]
    ids, pixel = prompt(8, BEFORE), pixels(1)
    features = model.get_image_features(pixel_values=pixel).pooler_output[0]
    expected = staged.staged_logits(model, ids, features, decide(), compact=False)
    with pruned(model, method(), regions=[WIDE]):
        out = model(input_ids=ids[None], pixel_values=pixel, use_cache=use_cache)
    assert out.logits.shape[1] == len(expected) < len(ids)
    torch.testing.assert_close(out.logits[0], expected, atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_merged_tokens_come_into_the_schedule_of_their_own_method() -> None:
    model = tiny_llava(4, 2)
    inputs = {"input_ids": prompt(8)[None], "pixel_values": pixels(1)}
    with pruned(model, SparseVLM((20, 9), (1, 2))):
        expected = model(**inputs)
    for other in (PyramidDrop(1.0, (1,)), ILP(4, "compact")):
        both_ways = [SparseVLM((20, 9), (1, 2)), other]
        made = Schedule(sorted(both_ways, key=lambda method: method.layers[-1]))
        with pruned(model, made, regions=[FULL]):
            out = model(**inputs)
        assert torch.equal(out.logits, expected.logits)


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_a_row_does_not_depend_on_its_batch_and_beams_are_its_own(case) -> None:
    model, (method, _) = tiny_llava(4, 2), CASES[case]
    prompts = [prompt(5), prompt(4, images=0, seed=2), prompt(11, before=1, seed=1), prompt(3, seed=3)]
    regions, pixel = [WIDE, None, SMALL, None], pixels(3)
    images = [pixel[:1], None, pixel[1:2], pixel[2:]]
    options = {"max_new_tokens": 3, "do_sample": False, "num_beams": 2, "num_return_sequences": 2}
    with pruned(model, method(), regions=regions) as patch:
        together = model(**batch(prompts), pixel_values=pixel).logits
        kept, real_BM = patch.kept_B.tolist(), patch.survivors_BM >= 0
        beams = model.generate(**batch(prompts), pixel_values=pixel, **options)
    for row, (ids, image, region) in enumerate(zip(prompts, images, regions, strict=True)):
        given_pixels = {} if image is None else {"pixel_values": image}
        with pruned(model, method(), regions=[region]) as alone:
            expected = model(input_ids=ids[None], **given_pixels).logits[0]
            assert alone.kept_B.tolist() == [kept[row]]
            mine = model.generate(input_ids=ids[None], **given_pixels, **options)
        torch.testing.assert_close(together[row, real_BM[row]], expected, atol=5e-5, rtol=1e-5)
        assert torch.equal(beams[2 * row : 2 * row + 2, -3:], mine[:, -3:])


@pytest.mark.parametrize("layer", [0, 1, 3])
@torch.no_grad()
def test_identities(layer) -> None:
    model = tiny_llava(3)
    inputs = batch([prompt(5), prompt(9, seed=1)]) | {"pixel_values": pixels(2)}
    regions = [SMALL, WIDE]
    plain = model(**inputs).logits
    by = "attention" if layer else "uniform"

    def logits(method: Any) -> torch.Tensor:
        with pruned(model, method, regions=regions):
            return model(**inputs).logits

    assert torch.equal(logits(Hybrid(1.0, layer, 0, by)), logits(ILP(layer)))
    assert torch.equal(logits(Hybrid(64, layer, 0.3, by, by)), plain)
    assert torch.equal(logits(Hybrid(5, 3)), plain)  # K = L
    assert torch.equal(logits(Schedule([ILP(3), Dense()])), plain)
    assert torch.equal(logits(Schedule([ILP(layer)])), logits(ILP(layer)))
    if layer == 1:
        assert torch.equal(logits(Schedule([ILP(1), ILP(2)])), logits(ILP(1)))
        assert torch.equal(logits(Schedule([Dense(), FastV(7, 2)])), logits(FastV(7, 2)))


@torch.no_grad()
def test_what_layers_saw_and_names() -> None:
    model = tiny_llava(4)
    method = Schedule([ILP(1, "compact"), SparseVLM((9, 4), (1, 2), 0, "compact")])
    assert (method.layers, method.watches, method.positions) == ((0, 1, 2, 3), (1, 2), "compact")
    with pruned(model, method, regions=[WIDE]) as patch:
        model.generate(input_ids=prompt(5)[None], pixel_values=pixels(1), max_new_tokens=2, do_sample=False)
    assert patch.visual_BL.tolist() == [[64, 16, 9, 4]]
    assert (method.name, Hybrid(3).name, Schedule([FastV(3)]).name) == ("schedule", "hybrid", "fastv")
    config, seen = model.config.text_config, [64, 16, 9, 4]
    parts = [one.flops(config, 64, seen, 6) for one in method.methods]
    assert method.flops(config, 64, seen, 6) == sum(parts) > 0
    rated, compared = Hybrid(3, 1).flops(config, 64, seen, 6), Hybrid(3, 1, 0, "diversity").flops(config, 64, seen, 6)
    assert rated == FastV(3, 1).flops(config, 64, seen, 6) and compared == DivPrune(3, 1).flops(config, 64, seen, 6)


@pytest.mark.parametrize("family", FAMILIES)
@torch.no_grad()
def test_every_family(family) -> None:
    vlm, images = FAMILIES[family](), pictures(2)
    inputs = vlm.inputs(images, QUESTIONS[:2])
    regions, plain = [SMALL, WIDE], vlm.model(**inputs.kwargs()).logits
    with pruned(vlm, Hybrid(1.0, 1), regions=regions, grids=inputs.grids):
        assert torch.equal(vlm.model(**inputs.kwargs()).logits, plain)
    for method in (Hybrid(0.25, 1, 0.3, "diversity"), Schedule([ILP(1), FastV(4, 2)])):
        with pruned(vlm, method, regions=regions, grids=inputs.grids) as patch:
            together = vlm.generate(inputs, max_new_tokens=3)
            kept = patch.kept_B.tolist()
        counts = [round(grid.num_tokens / 4) for grid in inputs.grids] if isinstance(method, Hybrid) else [4, 4]
        assert all(abs(one - other) <= 1 for one, other in zip(kept, counts, strict=True))
        for row, image in enumerate(images):
            one = vlm.inputs([image], [QUESTIONS[row]])
            with pruned(vlm, method, regions=[regions[row]], grids=one.grids):
                assert vlm.generate(one, max_new_tokens=3) == [together[row]]


@given(st.integers(1, 80), st.integers(0, 60), st.integers(0, 60), st.floats(0, 0.99))
def test_a_budget_is_met_as_far_as_there_are_tokens(tokens, inside, outside, share) -> None:
    mine, others = Hybrid(1, 0, share, "uniform").split(tokens, inside, outside)
    assert 0 <= mine <= inside and 0 <= others <= outside
    assert mine + others == min(tokens, inside + (outside if share else 0))
    if inside >= tokens and outside >= tokens:
        assert others == min(int(tokens * share + 0.5), tokens - 1)


@given(st.lists(st.lists(st.booleans(), min_size=30, max_size=30), min_size=1, max_size=3), st.data())
def test_spread_tokens_are_as_far_apart_as_can_be(rows, data) -> None:
    candidate_BS = torch.tensor(rows)
    counts = [data.draw(st.integers(0, sum(row))) for row in rows]
    chosen_BS = spread(candidate_BS, counts)
    for candidate_S, chosen_S, count in zip(candidate_BS, chosen_BS, counts, strict=True):
        places = chosen_S[candidate_S].nonzero()[:, 0].tolist()
        assert len(places) == count == int(chosen_S.sum())
        gaps = [b - a for a, b in zip(places, places[1:])]
        assert not gaps or max(gaps) - min(gaps) <= 1


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: Hybrid(0), "tokens=0"),
        (lambda: Hybrid(8, 0), "attention is that of the layer before"),
        (lambda: Hybrid(8, 0, 0.1, "uniform", "attention"), "attention is that of the layer before"),
        (lambda: Hybrid(8, outside=1.0), "outside=1.0"),
        (lambda: Hybrid(8, by="luck"), "by='luck'"),
        (lambda: Hybrid(8, outside_by="luck"), "outside_by='luck'"),
        (lambda: Schedule([]), "at least one"),
        (lambda: Schedule([Dense()]), "at least one"),
        (lambda: Schedule(["ilp"]), "ilp is no method"),
        (lambda: Schedule([FastV(8, 3), ILP(2)]), r"layers \(3,\), \(2,\) must ascend"),
        (lambda: Schedule([ILP(2), FastV(8, 2)]), "one method's alone"),
        (lambda: Schedule([ILP(2), PyramidDrop(0.5, (3, 4))]), "positions must agree, and are ilp original"),
    ],
)
def test_options_must_be_sensible(make, says) -> None:
    with pytest.raises(ValueError, match=says):
        make()


@torch.no_grad()
def test_requests_and_layers_are_checked_at_the_door() -> None:
    model = tiny_llava(3)
    for method, says in ((Hybrid(8, 1), "needs regions"), (Schedule([ILP(1), FastV(9, 4)]), "choose ascending layers")):
        with pytest.raises(ValueError, match=says), pruned(model, method):
            pass
    with pytest.raises(ValueError, match="more than the 64"), pruned(model, Hybrid(65, 1), regions=[Region.full()]):
        model(input_ids=prompt(5)[None], pixel_values=pixels(1))
