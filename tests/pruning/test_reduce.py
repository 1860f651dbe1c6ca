"""VisionZip and VisPruner on what a tower might show, of any size, against references with loops."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cropl.grid import TokenGrid
from cropl.models.tower_view import TowerImage, TowerView
from cropl.pruning import VisionZip, VisPruner
from tests.reference import tower


def shown(tokens: int, seed: int, class_token: bool) -> tuple[TowerView, tower.Inside]:
    """A view of random numbers whose projector doubles, and the same for the reference."""
    generator = torch.Generator().manual_seed(seed)
    x_VW, key_VE = (torch.randn(tokens, width, dtype=torch.float64, generator=generator) for width in (6, 4))
    attention_HV = torch.rand(3, tokens, dtype=torch.float64, generator=generator)
    class_W = torch.randn(6, dtype=torch.float64, generator=generator) if class_token else None
    view = TowerView(x_VW, 2 * x_VW, attention_HV, key_VE, class_W, project=lambda x: 2 * x)
    return view, tower.Inside(x_VW, attention_HV, key_VE, class_W)


@given(st.integers(1, 70), st.data(), st.integers(0, 9), st.booleans())
@settings(deadline=None)
def test_visionzip_is_the_reference(tokens, data, seed, class_token) -> None:
    count = data.draw(st.integers(1, tokens))
    share = data.draw(st.sampled_from([0, 0.1, 1 / 6.4, 0.5, 0.9]))
    contextual = min(count - 1, int(count * share + 0.5))
    view, inside = shown(tokens, seed, class_token)
    made = VisionZip(count, share).reduce(view, count)
    dominant, merged, targets = tower.visionzip(inside, count, contextual)
    if class_token:
        assert made.place_M is None
        expected = [inside.class_W, *inside.x_VW[dominant], *merged]
    else:
        at = dict(zip(dominant, inside.x_VW[dominant])) | dict(zip(targets, merged))
        assert made.place_M.tolist() == sorted(at)
        expected = [at[place] for place in sorted(at)]
    assert len(made.token_MD) == count
    torch.testing.assert_close(made.token_MD, 2 * torch.stack(expected))


@given(st.integers(1, 70), st.data(), st.integers(0, 9), st.sampled_from([0.0, 0.3, 0.5, 1.0]))
@settings(deadline=None)
def test_vispruner_is_the_reference(tokens, data, seed, important) -> None:
    count = data.draw(st.integers(1, tokens))
    view, inside = shown(tokens, seed, True)
    made = VisPruner(count, important).reduce(view, count)
    kept = tower.vispruner(inside, count, important)
    assert made.place_M.tolist() == kept and len(kept) == count
    assert torch.equal(made.token_MD, view.token_VD[kept])


@pytest.mark.parametrize(
    ("tokens", "crops", "dominant", "contextual"),
    [
        (192, 1, 162, 30), (128, 1, 108, 20), (64, 1, 54, 10),
        (640, 5, 108, 20), (320, 5, 54, 10), (160, 5, 27, 5),
    ],
)  # fmt: skip
def test_budgets_are_split_as_published(tokens, crops, dominant, contextual) -> None:
    view, inside = shown(576, 0, True)
    image = TowerImage([view] * crops, torch.zeros(576 * crops, 6))
    method = VisionZip(tokens)
    made = method.reduce_image(image).token_MD
    patches, merged, _ = tower.visionzip(inside, dominant + contextual, contextual)
    assert len(patches) + 1 == dominant and len(merged) == contextual
    once = 2 * torch.cat([inside.class_W[None], inside.x_VW[patches], merged])
    torch.testing.assert_close(made, once.repeat(crops, 1))
    assert method.count(TokenGrid.padded_square(24, 1, 1)) == tokens if crops == 1 else len(made) == tokens


def test_shares_are_of_each_images_own_tokens_and_uneven_crops_differ_by_one() -> None:
    view, _ = shown(50, 0, False)
    for method in (VisionZip(0.222), VisPruner(0.222)):
        assert len(method.reduce_image(TowerImage([view], view.token_VD)).token_MD) == 11
        image = TowerImage([view] * 3, torch.zeros(70, 6))
        assert len(method.reduce_image(image).token_MD) == 16  # 6 + 5 + 5
        with pytest.raises(ValueError, match="51 for a crop of 50"):
            type(method)(102).reduce_image(TowerImage([view] * 2, torch.zeros(110, 6)))


@pytest.mark.parametrize(
    ("make", "says"),
    [
        (lambda: VisionZip(0), "tokens=0"),
        (lambda: VisionZip(64, 1.0), "contextual=1.0"),
        (lambda: VisPruner(1.5), "tokens=1.5"),
        (lambda: VisPruner(64, 1.1), "important=1.1"),
    ],
)
def test_options_must_be_sensible(make, says) -> None:
    with pytest.raises(ValueError, match=says):
        make()
