"""Muon for matrices with AdamW for the rest, as one optimizer: small transformers learn from scratch in half the steps.

``torch.optim.Muon`` takes matrices only and iterates in bfloat16, which is slow on CPUs without it; here the iteration
runs in the parameters' precision, and Lightning sees one optimizer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor


class MuonAdamW(torch.optim.Optimizer):
    """Orthogonalised momentum (Jordan et al. 2024) where a group says ``muon=True``, AdamW in the other groups.

    Args:
        groups: parameter groups with keys ``params``, ``lr``, ``weight_decay`` and ``muon``.
        momentum: of Muon (Nesterov).
        betas: of AdamW.
        eps: of AdamW.

    A matrix' update is scaled by ``sqrt(max(rows, columns))``: its elements then have size one, like AdamW's first
    steps, and one learning rate suits both.
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        lr: float = 1e-3,
        momentum: float = 0.95,
        betas: tuple[float, float] = (0.9, 0.98),
        eps: float = 1e-8,
    ):
        defaults = {"lr": lr, "momentum": momentum, "betas": betas, "eps": eps, "weight_decay": 0.0, "muon": False}
        super().__init__(groups, defaults)

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> float | None:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                direction = self._muon if group["muon"] else self._adam
                update = direction(parameter, parameter.grad, group)
                parameter.mul_(1 - group["lr"] * group["weight_decay"]).sub_(group["lr"] * update)
        return loss

    def _muon(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[parameter]
        if not state:
            state["momentum"] = torch.zeros_like(parameter)
        momentum = state["momentum"].lerp_(grad, 1 - group["momentum"])
        direction = grad.lerp(momentum, group["momentum"]).flatten(1)
        return orthogonalize(direction).view_as(parameter) * max(direction.shape) ** 0.5

    def _adam(self, parameter: Tensor, grad: Tensor, group: dict[str, Any]) -> Tensor:
        state = self.state[parameter]
        if not state:
            state.update(step=0, mean=torch.zeros_like(parameter), square=torch.zeros_like(parameter))
        state["step"] += 1
        beta1, beta2 = group["betas"]
        mean = state["mean"].lerp_(grad, 1 - beta1)
        square = state["square"].lerp_(grad.square(), 1 - beta2)
        unbiased = (square / (1 - beta2 ** state["step"])).sqrt_().add_(group["eps"])
        return mean / (1 - beta1 ** state["step"]) / unbiased


def orthogonalize(matrix: Tensor, iterations: int = 5) -> Tensor:
    """A matrix (rows, columns) with the singular vectors of ``matrix`` and singular values near 1 (Newton-Schulz)."""
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix / (matrix.norm() + 1e-7)
    transposed = x.shape[0] > x.shape[1]
    x = x.mT if transposed else x
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.mT if transposed else x
