"""Losses without logits are those of all logits at once, in value and gradient, and only a chunk of logits exists."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from cropl.models import token_losses as module
from cropl.models.token_losses import correct_tokens, token_losses

T, V, D, ROWS = 23, 130, 12, 5  # the last chunk is not full


@pytest.fixture(params=[True, False], ids=["torch", "recomputed"])
def small_chunks(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Chunks of five tokens, by torch's function and by our own."""
    if request.param and not module.HAS_TORCHS:
        pytest.skip(f"torch {torch.__version__} has no chunked loss of each token")
    monkeypatch.setattr(module, "HAS_TORCHS", request.param)
    monkeypatch.setattr(module, "CHUNK", ROWS * V + 3)
    yield request.param


def drawn(count: int = T, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Hidden states, weight, bias, targets and the gradients that losses get."""
    generator = torch.Generator().manual_seed(count)
    hidden_TD = torch.randn(count, D, generator=generator).to(dtype).requires_grad_()
    weight_VD = torch.randn(V, D, generator=generator).to(dtype).requires_grad_()
    bias_V = torch.randn(V, generator=generator).to(dtype).requires_grad_()
    targets_T = torch.randint(V, (count,), generator=generator)
    return hidden_TD, weight_VD, bias_V, targets_T, torch.rand(count, generator=generator)


def plainly(hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, bias_V: Tensor | None = None) -> Tensor:
    """All logits at once in float64."""
    bias_V = None if bias_V is None else bias_V.double()
    return F.cross_entropy(F.linear(hidden_TD.double(), weight_VD.double(), bias_V), targets_T, reduction="none")


def gradients(compute: Callable[..., Tensor], given: tuple[Tensor, ...], bias: bool) -> tuple[Tensor, list[Tensor]]:
    hidden_TD, weight_VD, bias_V, targets_T, share_T = given
    leaves = [hidden_TD, weight_VD, *([bias_V] if bias else [])]
    loss_T = compute(hidden_TD, weight_VD, targets_T, bias_V if bias else None)
    return loss_T.detach(), list(torch.autograd.grad((loss_T * share_T).sum(), leaves))


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("count", [0, 1, ROWS - 1, ROWS, ROWS + 1, 2 * ROWS, T])
def test_values_and_gradients_are_those_of_all_logits(small_chunks: bool, count: int, bias: bool) -> None:
    given = drawn(count)
    loss_T, ours = gradients(token_losses, given, bias)
    expected_T, theirs = gradients(plainly, given, bias)
    assert loss_T.dtype == torch.float32 and loss_T.shape == (count,)
    torch.testing.assert_close(loss_T, expected_T.float(), atol=2e-6, rtol=2e-6)
    for mine, reference in zip(ours, theirs):
        torch.testing.assert_close(mine, reference, atol=1e-5, rtol=1e-5)


def test_in_double_they_are_exact(small_chunks: bool) -> None:
    given = drawn(dtype=torch.float64)
    loss_T, ours = gradients(token_losses, given, True)
    expected_T, theirs = gradients(plainly, given, True)
    assert loss_T.dtype == torch.float64
    torch.testing.assert_close([loss_T, *ours], [expected_T, *theirs], atol=1e-12, rtol=1e-12)


def test_in_half_precision_they_are_no_worse_than_all_logits(small_chunks: bool) -> None:
    given = drawn(dtype=torch.bfloat16)

    def whole(hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, bias_V: Tensor | None) -> Tensor:
        return F.cross_entropy(F.linear(hidden_TD, weight_VD, bias_V).float(), targets_T, reduction="none")

    def error(found: Tensor, exact: Tensor) -> float:
        return float((found.double() - exact.double()).norm() / exact.double().norm())

    (loss_T, ours), (all_T, alls), (exact_T, exact) = (
        gradients(compute, given, True) for compute in (token_losses, whole, plainly)
    )
    assert loss_T.dtype == torch.float32
    assert error(loss_T, exact_T) < 2**-8 and error(all_T, exact_T) < 2**-8
    for mine, other, true in zip(ours, alls, exact):
        assert error(mine, true) < 2 * error(other, true) < 0.02  # sums over chunks are bfloat16, too


def test_under_autocast_it_computes_as_a_linear_layer_would(small_chunks: bool) -> None:
    hidden_TD, weight_VD, _, targets_T, _ = drawn()
    with torch.autocast("cpu", torch.bfloat16):
        loss_T = token_losses(hidden_TD, weight_VD, targets_T)
    half_T = token_losses(hidden_TD.bfloat16(), weight_VD.bfloat16(), targets_T)
    assert loss_T.dtype == torch.float32 and loss_T.equal(half_T) and not loss_T.equal(plainly(*drawn()[:2], targets_T))
    weight_grad = torch.autograd.grad(loss_T.sum(), weight_VD)[0]
    assert weight_grad.dtype == torch.float32 and weight_grad.abs().sum() > 0


@pytest.mark.parametrize("frozen", ["weight", "hidden"])
def test_what_is_frozen_gets_no_gradient(small_chunks: bool, frozen: str) -> None:
    hidden_TD, weight_VD, _, targets_T, _ = drawn()
    (hidden_TD if frozen == "hidden" else weight_VD).requires_grad_(False)
    token_losses(hidden_TD, weight_VD, targets_T).sum().backward()
    assert (hidden_TD.grad is None) == (frozen == "hidden") and (weight_VD.grad is None) == (frozen == "weight")


def test_a_tied_weight_gets_both_gradients(small_chunks: bool) -> None:
    _, weight_VD, _, targets_T, _ = drawn()
    ids_T = targets_T.flip(0)

    def tied(compute: Callable[..., Tensor]) -> Tensor:
        loss = compute(F.embedding(ids_T, weight_VD) * 0.5, weight_VD, targets_T).sum()
        return torch.autograd.grad(loss, weight_VD)[0]

    torch.testing.assert_close(tied(token_losses), tied(plainly), atol=1e-5, rtol=1e-5)


def test_a_target_that_is_ignored_costs_nothing(small_chunks: bool) -> None:
    hidden_TD, weight_VD, _, targets_T, _ = drawn()
    targets_T[3] = -100
    loss_T = token_losses(hidden_TD, weight_VD, targets_T)
    assert loss_T[3] == 0 and (loss_T[:3] > 0).all()
    assert torch.autograd.grad(loss_T.sum(), hidden_TD)[0][3].abs().sum() == 0


def test_a_nan_stays_with_its_token(small_chunks: bool) -> None:
    hidden_TD, weight_VD, _, targets_T, _ = drawn()
    with torch.no_grad():
        hidden_TD[7] = float("nan")
    assert token_losses(hidden_TD, weight_VD, targets_T).isnan().nonzero().tolist() == [[7]]


class Largest(TorchDispatchMode):
    """The most logits that any operation makes: elements of a tensor with an axis of V, other than weights."""

    logits = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for one in tree_leaves(made):
            if isinstance(one, Tensor) and V in one.shape and one.shape not in ((V, D), (D, V)):
                self.logits = max(self.logits, one.numel())
        return made


def test_all_logits_never_exist(small_chunks: bool) -> None:
    hidden_TD, weight_VD, bias_V, targets_T, _ = drawn(20 * ROWS)
    saved: list[int] = []

    def note(one: Tensor) -> Tensor:
        saved.append(one.numel())
        return one

    def peak(compute: Callable[..., Tensor]) -> int:
        with Largest() as largest, torch.autograd.graph.saved_tensors_hooks(note, lambda one: one):
            compute(hidden_TD, weight_VD, targets_T, bias_V).sum().backward()
        return largest.logits

    assert peak(plainly) == 20 * ROWS * V  # that the probe sees them, where they exist
    saved.clear()
    assert peak(token_losses) == ROWS * V <= module.CHUNK
    assert max(saved) <= max(hidden_TD.numel(), weight_VD.numel())
    with Largest() as largest:
        correct_tokens(hidden_TD, weight_VD, targets_T, bias_V)
    assert largest.logits == ROWS * V


@pytest.mark.parametrize("count", [0, 1, T])
def test_correct_tokens_are_the_most_probable(small_chunks: bool, count: int) -> None:
    hidden_TD, weight_VD, bias_V, targets_T, _ = drawn(count)
    best_T = F.linear(hidden_TD, weight_VD, bias_V).argmax(1)
    targets_T = torch.where(torch.arange(count) % 3 == 0, targets_T, best_T)
    found_T = correct_tokens(hidden_TD, weight_VD, targets_T, bias_V)
    assert found_T.dtype == torch.bool and not found_T.requires_grad
    assert found_T.tolist() == (best_T == targets_T).tolist()
    assert count < 2 or 0 < found_T.sum() < count


def test_of_equals_the_first_is_chosen_as_in_greedy_decoding(small_chunks: bool) -> None:
    hidden_TD, weight_VD, _, _, _ = drawn()
    with torch.no_grad():
        weight_VD[40] = weight_VD[90] = 10 * hidden_TD[2]
    assert correct_tokens(hidden_TD[2:3], weight_VD, torch.tensor([40])).tolist() == [True]
    assert correct_tokens(hidden_TD[2:3], weight_VD, torch.tensor([90])).tolist() == [False]
    equal_T = token_losses(hidden_TD[2:3].expand(2, -1), weight_VD, torch.tensor([40, 90]))
    assert equal_T[0] == equal_T[1]


def test_a_chunk_is_never_empty(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "CHUNK", 1)
    hidden_TD, weight_VD, _, targets_T, _ = drawn(3)
    torch.testing.assert_close(
        token_losses(hidden_TD, weight_VD, targets_T), plainly(hidden_TD, weight_VD, targets_T).float()
    )
