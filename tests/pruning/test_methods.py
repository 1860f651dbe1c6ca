"""The methods themselves, and methods of others: several stages, choices from hidden states, random controls."""

from __future__ import annotations

import pytest
import torch

from cropl.pruning import ILP, Dense, InnerLLM, RandomTokens, pruned
from tests.reference.tiny import SMALL, WIDE, batch, pixels, prompt, tiny_llava


def test_names() -> None:
    assert [ILP().name, ILP(0).name, ILP(0, "compact").name, ILP(1, "compact").name] == ["ilp", "ilp", "prune", "ilp"]
    assert (Dense().name, RandomTokens(4).name) == ("dense", "random")


@pytest.mark.parametrize("tokens", [0, -1, 0.0, 1.5, True, "4"])
def test_random_budget_must_be_sensible(tokens) -> None:
    with pytest.raises(ValueError, match="tokens="):
        RandomTokens(tokens)


@pytest.mark.parametrize("layer", [0, 1])
@torch.no_grad()
def test_random_tokens_do_not_depend_on_the_batch(layer) -> None:
    model = tiny_llava(3)
    prompts, pixel = [prompt(5), prompt(9, seed=1), prompt(4, images=0, seed=2)], pixels(2)
    survivors = {}
    for seed in (0, 1, [3, 4, 5]):
        with pruned(model, RandomTokens(10, seed, layer)) as patch:
            together = model(**batch(prompts), pixel_values=pixel).logits
        assert patch.kept_B.tolist() == [10, 10, 0]
        own = seed if isinstance(seed, int) else seed[1]
        with pruned(model, RandomTokens(10, own, layer)) as alone:
            expected = model(input_ids=prompts[1][None], pixel_values=pixel[1:]).logits[0]
        torch.testing.assert_close(together[1, -len(expected) :], expected, atol=1e-5, rtol=1e-5)
        survivors[str(seed)] = alone.survivors_BM[0].tolist()
    assert len(set(map(str, survivors.values()))) == 3
    with pruned(model, RandomTokens(0.25, 0, layer)) as patch:
        model.generate(**batch(prompts), pixel_values=pixel, max_new_tokens=2, num_beams=2)
    assert patch.kept_B.tolist() == [16] * 4 + [0] * 2


@torch.no_grad()
def test_random_tokens_are_uniform() -> None:
    method = RandomTokens(16)
    counts = torch.stack([method._draw(seed, 64, 16) for seed in range(2000)]).float().mean(0)
    assert (counts.sum() - 16).abs() < 1e-3 and (counts - 0.25).abs().max() < 0.05


def test_random_budget_above_the_token_count() -> None:
    model = tiny_llava(2)
    with pytest.raises(ValueError, match="more than the 64"), pruned(model, RandomTokens(65, layer=1)):
        model(input_ids=prompt(3)[None], pixel_values=pixels(1))
    with pytest.raises(ValueError, match="2 seeds for 1 rows"), pruned(model, RandomTokens(6, [1, 2], layer=1)):
        model(input_ids=prompt(3)[None], pixel_values=pixels(1))


class Strongest(InnerLLM):
    """Keeps the visual tokens of the largest norm, fewer at every stage: a method that looks at hidden states."""

    name = "strongest"

    def __init__(self, counts: dict[int, int], positions="original") -> None:
        self.counts, self.positions = counts, positions

    @property
    def layers(self) -> tuple[int, ...]:
        return tuple(self.counts)

    def keep(self, view):
        norms = view.hidden_BSD.norm(dim=-1).masked_fill(~view.visual_BS, -1)
        best = norms.topk(self.counts[view.layer], dim=1).indices
        return torch.zeros_like(view.visual_BS).scatter(1, best, True)


@pytest.mark.parametrize("positions", ["original", "compact"])
@pytest.mark.parametrize("counts", [{0: 30, 1: 12, 3: 5}, {1: 20, 2: 20, 4: 3}])
@torch.no_grad()
def test_several_stages(positions, counts) -> None:
    model = tiny_llava(4, 2)
    method = Strongest(counts, positions)
    prompts, pixel = [prompt(5), prompt(9, before=1, seed=1)], pixels(2)
    options = {"max_new_tokens": 5, "do_sample": False}
    with pruned(model, method) as patch:
        together = model(**batch(prompts), pixel_values=pixel)
        generated = model.generate(**batch(prompts), pixel_values=pixel, **options)
    expected = [next((c for at, c in reversed(counts.items()) if at <= layer), 64) for layer in range(4)]
    assert patch.visual_BL.tolist() == [expected] * 2
    lengths = [layer.keys.shape[-2] for layer in together.past_key_values.layers]
    assert lengths == [count + (10 if count < 64 else 10) for count in expected]
    for row, ids in enumerate(prompts):
        with pruned(model, method):
            alone = model(input_ids=ids[None], pixel_values=pixel[row : row + 1])
            single = model.generate(input_ids=ids[None], pixel_values=pixel[row : row + 1], **options)
            # Cached decoding against a prefill of everything is another computation of the same thing.
            uncached = model.generate(
                input_ids=ids[None], pixel_values=pixel[row : row + 1], use_cache=False, **options
            )
        count = alone.logits.shape[1]
        torch.testing.assert_close(together.logits[row, -count:], alone.logits[0], atol=1e-5, rtol=1e-5)
        assert single[0, -5:].tolist() == generated[row, -5:].tolist() == uncached[0, -5:].tolist()


@torch.no_grad()
def test_padding_is_gathered_away() -> None:
    # 5 and 9 words of text: the longest survivor decides the length, padding in front of the prune is not carried on.
    model = tiny_llava(2)
    with pruned(model, ILP(1), regions=[WIDE, SMALL]) as patch:
        out = model(**batch([prompt(5), prompt(9, seed=1)]), pixel_values=pixels(2))
    assert out.logits.shape[1] == max(8 + WIDE.area, 12 + SMALL.area)
    assert (patch.survivors_BM >= 0).sum(1).tolist() == [8 + WIDE.area, 12 + SMALL.area]
