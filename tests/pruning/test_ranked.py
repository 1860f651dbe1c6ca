"""Methods that rank visual tokens against independent references, alone, in ragged batches and in generation."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from cropl.pruning import DivPrune, FastV, InnerLLM, PyramidDrop, SparseVLM, UniformTokens, pruned
from cropl.pruning.divprune import diverse
from cropl.pruning.select import best
from cropl.pruning.sparsevlm import clustered
from tests.reference import staged
from tests.reference.tiny import batch, pixels, prompt, tiny_llava

CASES: dict[str, tuple[Callable[[], InnerLLM], Callable[[], staged.Decide]]] = {
    "fastv": (lambda: FastV(10, 2), lambda: staged.fastv(2, 10)),
    "fastv-early": (lambda: FastV(0.25, 1), lambda: staged.fastv(1, 16)),
    "fastv-compact": (lambda: FastV(7, 1, "compact"), lambda: staged.fastv(1, 7)),
    "pyramiddrop": (lambda: PyramidDrop(0.5, (1, 2, 3)), lambda: staged.pyramiddrop([1, 2, 3], 0.5, 64)),
    "pyramiddrop-original": (
        lambda: PyramidDrop(0.3, (0, 2), "original"), lambda: staged.pyramiddrop([0, 2], 0.3, 64),
    ),
    "sparsevlm": (
        lambda: SparseVLM((40, 12), (0, 2)), lambda: staged.sparsevlm([0, 2], [40, 12], 0.3),
    ),
    "sparsevlm+": (
        lambda: SparseVLM((30, 20, 5), (0, 1, 2), 0), lambda: staged.sparsevlm([0, 1, 2], [30, 20, 5], 0),
    ),
    "sparsevlm-much": (lambda: SparseVLM((8,), (1,), 0.9), lambda: staged.sparsevlm([1], [8], 0.9)),
}  # fmt: skip


def features_of(model: Any, pixel: torch.Tensor) -> torch.Tensor:
    return model.get_image_features(pixel_values=pixel[None]).pooler_output[0]


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("kv_heads", [4, 2])
@pytest.mark.parametrize("use_cache", [True, False])
@torch.no_grad()
def test_logits_are_those_of_the_reference(case, kv_heads, use_cache) -> None:
    model = tiny_llava(4, kv_heads)
    method, reference = CASES[case]
    ids, pixel = prompt(8), pixels(1)
    made = method()
    expected = staged.staged_logits(model, ids, features_of(model, pixel[0]), reference(), made.positions == "compact")
    with pruned(model, made):
        out = model(input_ids=ids[None], pixel_values=pixel, use_cache=use_cache)
    assert out.logits.shape[1] == len(expected) < len(ids)
    torch.testing.assert_close(out.logits[0], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("case", [*CASES, "divprune", "uniform"])
@pytest.mark.parametrize("side", ["left", "right"])
@torch.no_grad()
def test_a_row_does_not_depend_on_its_batch(case, side) -> None:
    model = tiny_llava(4, 2)
    others = {"divprune": lambda: DivPrune(9), "uniform": lambda: UniformTokens(9, 1)}
    method = others.get(case) or CASES[case][0]
    prompts = [prompt(5), prompt(11, before=1, seed=1), prompt(4, images=0, seed=2), prompt(3, seed=3)]
    pixel = pixels(3)
    images = [pixel[:1], pixel[1:2], None, pixel[2:]]
    with pruned(model, method()) as patch:
        together = model(**batch(prompts, side), pixel_values=pixel).logits
        kept = patch.kept_B.tolist()
    for row, (ids, image) in enumerate(zip(prompts, images, strict=True)):
        with pruned(model, method()) as alone:
            expected = model(input_ids=ids[None], pixel_values=image).logits[0]
        assert alone.kept_B.tolist() == [kept[row]]
        real = patch.survivors_BM[row] >= 0
        assert int(real.sum()) == len(expected)
        torch.testing.assert_close(together[row, real], expected, atol=5e-5, rtol=1e-5)


@pytest.mark.parametrize("case", [*CASES, "divprune", "uniform"])
@torch.no_grad()
def test_generation_with_a_cache_is_that_without_and_beams_are_each_rows_own(case) -> None:
    model = tiny_llava(4, 2)
    others = {"divprune": lambda: DivPrune(9), "uniform": lambda: UniformTokens(9, 1)}
    method = others.get(case) or CASES[case][0]
    ids, pixel = torch.stack([prompt(6), prompt(6, seed=1)]), pixels(2)
    greedy = {"max_new_tokens": 5, "do_sample": False}
    with pruned(model, method()):
        cached = model.generate(input_ids=ids, pixel_values=pixel, **greedy)
        beams = model.generate(input_ids=ids, pixel_values=pixel, num_beams=2, **greedy)
        # Recomputing the whole sequence at every step would ask the method again with a later last token.
        first = model(input_ids=ids, pixel_values=pixel, use_cache=False).logits[:, -1].argmax(-1)
    assert cached[:, ids.shape[1]].tolist() == first.tolist()
    for row in range(2):
        with pruned(model, method()):
            one = {"input_ids": ids[row : row + 1], "pixel_values": pixel[row : row + 1]}
            assert torch.equal(model.generate(**one, **greedy)[0], cached[row])
            assert torch.equal(model.generate(**one, num_beams=2, **greedy)[0], beams[row])


ALL = {
    "fastv": lambda: FastV(64, 1), "pyramiddrop": lambda: PyramidDrop(1.0, (1, 2)), "divprune": lambda: DivPrune(64),
    "sparsevlm": lambda: SparseVLM((64, 64), (0, 1)), "sparsevlm+": lambda: SparseVLM((1.0, 999), (0, 1), 0),
    "uniform": lambda: UniformTokens(1.0, 1),
}  # fmt: skip


@pytest.mark.parametrize("name", ALL)
@torch.no_grad()
def test_keeping_all_is_dense(name) -> None:
    model = tiny_llava(3)
    inputs = batch([prompt(5), prompt(9, seed=1)]) | {"pixel_values": pixels(2)}
    plain = model(**inputs).logits
    with pruned(model, ALL[name]()) as patch:
        assert torch.equal(model(**inputs).logits, plain)
    assert patch.kept_B.tolist() == [64, 64] and ALL[name]().name == name


@pytest.mark.parametrize("seed", range(4))
def test_diverse_tokens_and_clusters_are_those_of_loops(seed) -> None:
    x_VD = torch.randn(40, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    for count in (1, 2, 13, 40):
        assert diverse(x_VD, count).nonzero()[:, 0].tolist() == staged.divprune(x_VD, count)
    for count in (1, 9, 10, 31):
        torch.testing.assert_close(clustered(x_VD[:count]), staged.clusters(x_VD[:count]))


def test_uniform_tokens_are_spread_and_ties_go_to_the_earlier() -> None:
    model = tiny_llava(2)
    for count in (1, 5, 13, 63):
        with torch.no_grad(), pruned(model, UniformTokens(count, 1)) as patch:
            model(input_ids=prompt(4)[None], pixel_values=pixels(1))
        visual = [place - 3 for place in patch.survivors_BM[0].tolist() if 3 <= place < 67]
        gaps = [b - a for a, b in zip(visual, visual[1:])]
        assert len(visual) == count and (not gaps or max(gaps) - min(gaps) <= 1)
    scores, all_of = torch.tensor([[1.0, 2.0, 2.0, 2.0]]), torch.ones(1, 4, dtype=torch.bool)
    assert best(scores, all_of, [2]).tolist() == [[False, True, True, False]]
    assert best(scores, all_of & (scores != 2), [2]).tolist() == [[True, False, False, False]]


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: FastV(10, 0), "attention of the layer before"),
        (lambda: FastV(0), "tokens=0"),
        (lambda: PyramidDrop(0.0), "ratio="),
        (lambda: PyramidDrop(0.5, (3, 1)), "ascending"),
        (lambda: SparseVLM((3,), (1, 2)), "a number for each"),
        (lambda: SparseVLM((3,), (1,), 1.0), "recycle="),
        (lambda: SparseVLM((3,), (1,), 0.3, "original"), "no position of its own"),
        (lambda: DivPrune(1.5), "tokens=1.5"),
    ],
)
def test_options_must_be_sensible(make, says) -> None:
    with pytest.raises(ValueError, match=says):
        make()
