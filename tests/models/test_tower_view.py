"""What a vision tower shows: against full attention matrices, of each family, in any batch."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from cropl.models import tower_view
from cropl.models.tower_view import TowerImage, clip_layer
from tests.families import FAMILIES, pictures
from tests.reference import tower
from tests.reference.tiny import pixels, tiny_llava

TIGHT = {"atol": 1e-6, "rtol": 1e-5}
built = cache(lambda family: FAMILIES[family]())


@torch.no_grad()
def watched(vlm, run) -> list[TowerImage]:
    seen: list[TowerImage] = []
    watch = vlm.watch_tower(seen.append)
    run()
    watch.remove()
    run()  # and nothing is seen any more
    return seen


@torch.no_grad()
def test_a_clip_tower_shows_what_eager_attention_is() -> None:
    vlm, pixel = built("llava"), pixels(3)
    images = watched(vlm, lambda: vlm.model.get_image_features(pixel_values=pixel))
    features = vlm.model.get_image_features(pixel_values=pixel).pooler_output
    assert len(images) == 3
    for image, one, token_VD in zip(images, pixel, features, strict=True):
        [view], inside = image.views, tower.clip_inside(vlm.model, one)
        torch.testing.assert_close(view.attention_HV, inside.attention_HV, **TIGHT)
        torch.testing.assert_close(view.key_VE, inside.key_VE, **TIGHT)
        torch.testing.assert_close(view.feature_VW, inside.x_VW, **TIGHT)
        torch.testing.assert_close(view.class_W, inside.class_W, **TIGHT)
        torch.testing.assert_close(view.project(view.feature_VW), token_VD, **TIGHT)
        assert torch.equal(view.token_VD, token_VD) and torch.equal(image.token_VD, token_VD)


@pytest.mark.parametrize(("family", "block"), [("qwen2_vl", -2), ("qwen2_5_vl", 3)])
@pytest.mark.parametrize("scores", [2**23, 40])
@torch.no_grad()
def test_a_tower_without_class_token_shows_means_over_queries_and_patches(family, block, scores, monkeypatch) -> None:
    monkeypatch.setattr(tower_view, "SCORES", scores)  # as few queries at a time as one
    vlm, pictured = built(family), pictures(3)
    images = watched(vlm, lambda: vlm.encode_images(pictured))
    for image, picture in zip(images, pictured, strict=True):
        [view], (inside, places) = image.views, tower.qwen_inside(vlm, picture, block)
        at = torch.tensor(places)
        assert sorted(places) == list(range(len(view.token_VD)))
        torch.testing.assert_close(view.attention_HV[:, at], inside.attention_HV.to(view.attention_HV), **TIGHT)
        torch.testing.assert_close(view.key_VE[at], inside.key_VE, **TIGHT)
        torch.testing.assert_close(view.token_VD[at], inside.x_VW, **TIGHT)
        assert view.class_W is None and view.project(view.token_VD) is view.token_VD


class Shapes(TorchDispatchMode):
    """Notes the last two sizes of every tensor that an operator makes."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[int, ...]] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        made = func(*args, **(kwargs or {}))
        for one in made if isinstance(made, tuple | list) else [made]:
            if isinstance(one, torch.Tensor):
                self.seen.add(tuple(one.shape[-2:]))
        return made


@torch.no_grad()
def test_no_attention_matrix_is_made(monkeypatch) -> None:
    llava, qwen = FAMILIES["llava"](dtype=torch.float32), FAMILIES["qwen2_vl"](dtype=torch.float32)
    patches = len(qwen.encode_images(pictures(1))[0]) * qwen.merge**2
    monkeypatch.setattr(tower_view, "SCORES", 16 * patches)
    for vlm, size in ((llava, 65), (qwen, patches)):
        seen: list[TowerImage] = []
        watch = vlm.watch_tower(seen.append)
        with Shapes() as shapes:
            vlm.encode_images(pictures(1))
        watch.remove()
        assert len(seen) == 1 and any(size in shape for shape in shapes.seen)
        assert (size, size) not in shapes.seen


@torch.no_grad()
def test_next_shows_a_view_of_every_crop() -> None:
    vlm, pictured = built("llava_next"), pictures(3)
    images = watched(vlm, lambda: vlm.encode_images(pictured))
    crops = vlm.prepare.pixels(pictured)
    assert [len(image.views) for image in images] == [len(one) for one in crops] and len({*map(len, crops)}) > 1
    for image, one, token_VD in zip(images, crops, vlm.encode_images(pictured), strict=True):
        torch.testing.assert_close(image.token_VD, token_VD, **TIGHT)
        for view, crop in zip(image.views, one.double(), strict=True):
            torch.testing.assert_close(view.attention_HV, tower.clip_inside(vlm.model, crop).attention_HV, **TIGHT)
    assert "pack_image_features" not in vars(vlm.model.model)


@torch.no_grad()
def test_features_of_another_origin_are_no_image() -> None:
    vlm = built("llava")
    seen: list[TowerImage] = []
    watch = vlm.watch_tower(seen.append)
    vlm.projector(torch.zeros(2, 64, 16, dtype=torch.float64))
    vlm.tower(pixels(2))  # which nobody projects
    vlm.model.get_image_features(pixel_values=pixels(1))
    vlm.projector(torch.zeros(2, 64, 16, dtype=torch.float64))
    watch.remove()
    assert len(seen) == 1


@pytest.mark.parametrize(("chosen", "layer"), [(-2, 0), (-1, 1), (1, 0), (2, 1)])
def test_the_layer_is_the_one_whose_output_is_projected(chosen, layer) -> None:
    vision = tiny_llava(1).model.vision_tower
    assert clip_layer(vision, chosen) is vision.encoder.layers[layer]


@pytest.mark.parametrize("chosen", [-3, 0, 3, [-2, -1], None])
def test_a_layer_there_is_not(chosen) -> None:
    with pytest.raises(ValueError, match="output of one layer"):
        clip_layer(tiny_llava(1).model.vision_tower, chosen)


def test_other_towers_are_not_known() -> None:
    with pytest.raises(NotImplementedError, match="Linear.*only of CLIP"):
        clip_layer(torch.nn.Linear(2, 2), -2)
