"""A step that is no number stops before the update; a spike is left out, if that is asked for."""

from __future__ import annotations

import json
import math

import lightning as L
import pytest
import torch
from torch import nn

from cropl.errors import RunError
from cropl.modules.finite import LEAST, Watch, gradient_norm, sample_keys
from tests.attacks.faults import Bad, Keyed
from tests.callbacks.runs import ACCUMULATE, fit
from tests.data.conftest import make_sample


@pytest.mark.parametrize(("place", "told"), [("loss", "the loss is nan"), ("gradient", "the gradient's norm is nan")])
def test_nothing_is_updated(tmp_path, place, told):
    module = Bad(13, place)
    with pytest.raises(RunError, match=rf"step \d+: {told}.*s13.*nonfinite-step-.*Nothing was updated"):
        fit(tmp_path, module=module, data=Keyed())
    assert all(torch.isfinite(parameter).all() for parameter in module.parameters())
    (file,) = tmp_path.glob("nonfinite-step-*.json")
    said = json.loads(file.read_text())
    assert module.updates == said["step"] and len(said["processes"][0]) == ACCUMULATE
    keys = [key for batch in said["processes"][0] for key in batch["samples"]]
    assert len(keys) == 4 and "s13" in keys
    if place == "loss":
        lost = {key: batch["loss"] for batch in said["processes"][0] for key in batch["samples"]}
        assert math.isnan(lost["s13"]) and sum(math.isnan(loss) for loss in lost.values()) == 2


def test_a_spike_is_left_out_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("cropl.modules.finite.LEAST", 4)
    spiky, plain = Bad(13, "spike", skip_spikes=6.0), Bad(13, "spike")
    _, trainer = fit(tmp_path / "a", module=spiky, data=Keyed(), max_epochs=4, val_check_interval=None)
    fit(tmp_path / "b", module=plain, data=Keyed(), max_epochs=4, val_check_interval=None)
    assert plain.updates == 16 and spiky.updates == 16 - spiky.watch.skipped and spiky.watch.skipped == 3
    assert trainer.global_step == 16, "its samples are done with"
    assert float(trainer.callback_metrics["train/skipped_steps"]) == spiky.watch.skipped
    continued = Bad(13, "spike", skip_spikes=6.0)
    fit(tmp_path / "c", tmp_path / "a" / "step-000010", continued, Keyed(), max_epochs=4, val_check_interval=None)
    assert continued.watch.state_dict() == spiky.watch.state_dict()
    for one, other in zip(continued.parameters(), spiky.parameters()):
        assert torch.equal(one, other)


def test_what_a_spike_is():
    watch = Watch(3.0)
    trainer = L.Trainer(logger=False, enable_checkpointing=False, accelerator="cpu")
    generator = torch.Generator().manual_seed(0)
    usual = [2 + 0.1 * float(torch.randn((), generator=generator)) for _ in range(LEAST)]
    assert not any(watch.end(trainer, loss, 1.0) for loss in usual)
    assert not watch.end(trainer, 1.0, 1.0), "a fall is none"
    assert not watch.end(trainer, 2.1, 1.0) and watch.end(trainer, 9.0, 1.0)
    assert watch.skipped == 1 and watch.end(trainer, 2.0, 5.0)
    assert not Watch(3.0).end(trainer, 100.0, 1.0), "the first of all"
    with pytest.raises(ValueError, match="skip_spikes 0"):
        Watch(0)


def test_keys_of_a_batch():
    rows = {"questions": [[{"key": "a"}, {"key": "b"}], [{"question": "What?", "key": ""}]]}
    assert sample_keys(rows) == ["a", "b", "What?"]
    assert sample_keys([make_sample(3)]) == ["s0003"]
    assert sample_keys(torch.ones(2)) == [] and sample_keys({}) == []


def test_norm_of_all_gradients():
    module = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2))
    assert gradient_norm(module) == 0
    module[0](torch.ones(1, 3)).square().sum().backward()
    expected = torch.cat([p.grad.flatten() for p in module[0].parameters()]).norm()
    torch.testing.assert_close(gradient_norm(module), expected)
    module[0].weight.grad[0, 0] = float("inf")
    assert not torch.isfinite(gradient_norm(module))
