"""A frozen tower keeps nothing for a backward pass; one that trains is left alone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from cropl.models.vlm import VLM, load_vlm
from cropl.testbed.build import build_llava, build_qwen2_vl
from cropl.testbed.scenes import scene


@pytest.fixture(scope="module", params=["llava", "qwen2_vl"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    build = {"llava": build_llava, "qwen2_vl": build_qwen2_vl}[request.param]
    return build(tmp_path_factory.mktemp(request.param), layers=1, width=64)


@pytest.fixture
def vlm(folder: Path) -> VLM:
    vlm = load_vlm(str(folder))
    vlm.tower.requires_grad_(False)
    vlm.projector.requires_grad_(True)
    return vlm


def encode(vlm: VLM) -> tuple[list[Tensor], list[Tensor]]:
    """Visual tokens of a picture, and what autograd keeps on the way that is no weight."""
    weights = {parameter.data_ptr() for parameter in vlm.model.parameters()}
    kept: list[Tensor] = []

    def note(one: Tensor) -> Tensor:
        if one.data_ptr() not in weights:
            kept.append(one)
        return one

    picture = vlm.prepare(scene("val", 3).render())
    with torch.autograd.graph.saved_tensors_hooks(note, lambda one: one):
        return vlm.encode_prepared([picture.pixels], [picture.patches]), kept


def modes(vlm: VLM) -> dict[str, bool]:
    """Whether a graph is kept while each part of the tower runs, and the projector."""
    seen: dict[str, bool] = {}
    hooks = []
    for root in {vlm.tower, vlm.projector}:
        for name, part in root.named_modules():
            kind = "projector" if root is vlm.projector else f"tower.{name}"

            def note(*_: Any, kind: str = kind) -> None:
                seen[kind] = torch.is_grad_enabled()

            hooks.append(part.register_forward_hook(note))
    encode(vlm)
    for hook in hooks:
        hook.remove()
    return seen


@pytest.mark.parametrize("asked", [False, True], ids=["plain", "inputs require gradients"])
def test_only_what_the_projector_needs_is_kept(vlm: VLM, asked: bool) -> None:
    if asked:
        vlm.model.enable_input_require_grads()  # as peft does
    features, kept = encode(vlm)
    inputs: list[Tensor] = []
    hook = vlm.projector.register_forward_pre_hook(lambda _, given: inputs.append(given[0].detach()))
    encode(vlm)
    hook.remove()
    alone: list[Tensor] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda one: alone.append(one) or one, lambda one: one):
        vlm.projector(inputs[0])
    weights = {parameter.data_ptr() for parameter in vlm.projector.parameters()}
    expected = sum(one.numel() for one in alone if one.data_ptr() not in weights)
    assert 0 < sum(one.numel() for one in kept) <= expected
    features[0].sum().backward()
    trained = {id(parameter) for parameter in vlm.projector.parameters()}
    assert all((parameter.grad is None) == (id(parameter) not in trained) for parameter in vlm.tower.parameters())
    assert torch.is_grad_enabled()


def test_the_tower_runs_without_a_graph_and_the_projector_with_one(vlm: VLM) -> None:
    seen = modes(vlm)
    inside = {f"tower.{name}" for name, part in vlm.tower.named_modules() if part in set(vlm.projector.modules())}
    assert seen["projector"] and all(seen[name] for name in inside if name in seen)
    frozen = [name for name in seen if name not in inside and name not in ("projector", "tower.")]
    assert len(frozen) > 10 and not any(seen[name] for name in frozen)


def test_where_nothing_trains_no_graph_is_left(vlm: VLM) -> None:
    vlm.projector.requires_grad_(False)
    vlm.model.enable_input_require_grads()
    features, kept = encode(vlm)
    if vlm.tower is vlm.projector or vlm.projector in set(vlm.tower.modules()):
        assert not kept and not features[0].requires_grad
    with torch.inference_mode():
        assert not encode(vlm)[0][0].requires_grad


def test_a_tower_that_trains_in_part_is_left_alone(vlm: VLM) -> None:
    first = next(vlm.tower.parameters())
    first.requires_grad_(True)
    assert all(modes(vlm).values())
    encode(vlm)[0][0].sum().backward()
    assert first.grad is not None and first.grad.abs().sum() > 0


def test_an_error_within_leaves_gradients_on(vlm: VLM) -> None:
    last = [part for part in vlm.tower.modules() if part not in set(vlm.projector.modules())][-1]

    def fail(*_: Any) -> None:
        raise RuntimeError("out of memory")

    hook = last.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="out of memory"):
        encode(vlm)
    assert torch.is_grad_enabled()
    hook.remove()
    assert modes(vlm)["projector"] and encode(vlm)[1]
