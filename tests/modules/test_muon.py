"""Muon against its definition, and AdamW's part against torch's."""

from __future__ import annotations

import pytest
import torch

from cropl.modules.muon import MuonAdamW, orthogonalize


@pytest.mark.parametrize("shape", [(24, 24), (16, 64), (64, 16)])
def test_orthogonalize_keeps_singular_vectors_and_levels_the_values(shape):
    torch.manual_seed(0)
    matrix = torch.randn(shape, dtype=torch.float64)
    u, s, vh = torch.linalg.svd(matrix, full_matrices=False)
    made = orthogonalize(matrix)
    inside = u.mT @ made @ vh.mT
    assert torch.allclose(inside, torch.diag(inside.diagonal()), atol=1e-6)
    typical = inside.diagonal()[s > 0.1 * s.max()]
    assert ((typical > 0.5) & (typical < 1.5)).all()


def test_other_groups_are_adamw():
    torch.manual_seed(0)
    start, grads = torch.randn(7), torch.randn(5, 7)
    ours, theirs = (torch.nn.Parameter(start.clone()) for _ in range(2))
    mine = MuonAdamW([{"params": [ours], "muon": False, "weight_decay": 0.1}], lr=0.01, betas=(0.9, 0.98))
    reference = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.98), weight_decay=0.1)
    for grad in grads:
        ours.grad, theirs.grad = grad.clone(), grad.clone()
        mine.step()
        reference.step()
    torch.testing.assert_close(ours, theirs)


def test_it_resumes_exactly_from_its_state():
    torch.manual_seed(0)
    grads = torch.randn(6, 8, 4)

    def run(stop: int | None) -> torch.Tensor:
        parameter = torch.nn.Parameter(torch.ones(8, 4))
        optimizer = MuonAdamW([{"params": [parameter], "muon": True}], lr=0.01)
        for i, grad in enumerate(grads):
            if i == stop:
                state = optimizer.state_dict()
                parameter = torch.nn.Parameter(parameter.detach().clone())
                optimizer = MuonAdamW([{"params": [parameter], "muon": True}], lr=0.01)
                optimizer.load_state_dict(state)
            parameter.grad = grad.clone()
            optimizer.step()
        return parameter.detach()

    assert torch.equal(run(None), run(3))
