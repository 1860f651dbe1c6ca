"""Leaving the context restores the instance, whatever happened inside; one context per model, and only that model."""

from __future__ import annotations

import copy
import threading

import pytest
import torch

from cropl.pruning import ILP, Dense, PruningError, pruned
from tests.reference.tiny import SMALL, WIDE, tiny_llava


def hooks(model) -> list[dict]:
    names = ("_forward_hooks", "_forward_pre_hooks", "_forward_hooks_with_kwargs", "_forward_hooks_always_called")
    names += ("_forward_pre_hooks_with_kwargs",)
    return [dict(getattr(module, name)) for module in model.modules() for name in names]


@torch.no_grad()
def test_leaving_restores_the_instance_bit_for_bit(model, inputs) -> None:
    plain, before, state = model(**inputs).logits, hooks(model), copy.deepcopy(model.state_dict())
    attributes = {id(m): set(vars(m)) for m in model.modules()}
    with pruned(model, ILP(1), regions=[SMALL]):
        changed = model(**inputs).logits
        model.generate(**inputs, max_new_tokens=2)
    assert changed.shape != plain.shape
    assert torch.equal(model(**inputs).logits, plain)
    assert hooks(model) == before
    assert {id(m): set(vars(m)) for m in model.modules()} == attributes
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())
    with pytest.raises(KeyError, match="mine"), pruned(model, ILP(0), regions=[SMALL]):
        raise KeyError("mine")
    with pytest.raises(ValueError, match="image size"), pruned(model, ILP(0), regions=[SMALL]):
        model(input_ids=inputs["input_ids"], pixel_values=torch.zeros(1, 3, 5, 5, dtype=torch.float64))
    assert hooks(model) == before
    assert torch.equal(model(**inputs).logits, plain)


@torch.no_grad()
def test_a_failed_forward_does_not_break_the_context(model, inputs) -> None:
    with pruned(model, ILP(1), regions=[SMALL]):
        expected = model(**inputs).logits
        with pytest.raises(ValueError, match="image size"):
            model(input_ids=inputs["input_ids"], pixel_values=torch.zeros(1, 3, 5, 5, dtype=torch.float64))
        assert torch.equal(model(**inputs).logits, expected)


@torch.no_grad()
def test_two_models_one_patched(model, inputs) -> None:
    other = tiny_llava(3)
    plain = other(**inputs).logits
    with pruned(model, ILP(1), regions=[SMALL]):
        assert torch.equal(other(**inputs).logits, plain)
        assert model(**inputs).logits.shape[1] == 8 + SMALL.area
        with pruned(other, ILP(1), regions=[WIDE]):  # another model may be pruned at the same time
            assert other(**inputs).logits.shape[1] == 8 + WIDE.area


@torch.no_grad()
def test_nested_and_concurrent_use(model, inputs) -> None:
    with pruned(model, ILP(1), regions=[SMALL]):
        with pytest.raises(PruningError, match="pruned already"), pruned(model, Dense()):
            pass
        assert model(**inputs).logits.shape[1] == 8 + SMALL.area  # the outer context is still there
    with pruned(model, Dense()):
        pass

    inside, leave, errors = threading.Event(), threading.Event(), []

    def hold(module, args) -> None:
        if threading.current_thread() is not threading.main_thread():
            inside.set()
            leave.wait(10)

    def work() -> None:
        try:
            with torch.no_grad():
                model(**inputs)
        except Exception as error:
            errors.append(error)

    handle = model.model.multi_modal_projector.register_forward_pre_hook(hold)
    with pruned(model, ILP(1), regions=[SMALL]):
        thread = threading.Thread(target=work)
        thread.start()
        assert inside.wait(10)
        with pytest.raises(PruningError, match="two threads"):
            model(**inputs)
        leave.set()
        thread.join()
        assert not errors
        assert model(**inputs).logits.shape[1] == 8 + SMALL.area
    handle.remove()
