"""What is loaded into a training module is checked, although frozen weights are left out of its checkpoints."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from cropl.modules.base import TrainingModule


class Half(TrainingModule):
    """A frozen layer and a trained one."""

    def __init__(self):
        super().__init__()
        self.tower, self.head = nn.Linear(2, 2).requires_grad_(False), nn.Linear(2, 1)


def test_its_own_checkpoint_fits():
    module = Half()
    assert set(module.state_dict()) == {"head.weight", "head.bias"}
    module.on_load_checkpoint({"state_dict": Half().state_dict()})


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda state: state.pop("head.bias"), "Half: head.bias is missing"),
        (lambda state: state.update({"tail.weight": torch.zeros(1)}), "tail.weight is not a trained weight"),
        (lambda state: state.update({"tower.weight": torch.zeros(2, 2)}), "tower.weight is not a trained weight"),
        (lambda state: state.update({"head.weight": torch.zeros(1, 3)}), r"head.weight has the shape \(1, 3\)"),
    ],
)
def test_another_checkpoint_is_refused(change, says):
    state = Half().state_dict()
    change(state)
    with pytest.raises(ValueError, match=says):
        Half().on_load_checkpoint({"state_dict": state})


@pytest.mark.parametrize("precision", ["16-mixed", "16-true", "bf16-true"])
def test_a_precision_that_would_lose_updates_or_overflow_is_refused(precision):
    with pytest.raises(ValueError, match=f"trainer.precision {precision}.*bf16-mixed"):
        Half()._keep_masters(precision)
