"""Averages of the trained weights: right, also in shards, used where they should be, and continued exactly."""

from __future__ import annotations

import os
import signal
from types import SimpleNamespace

import lightning as L
import pytest
import torch
import torch.distributed as dist
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor
from torch.utils.data import DataLoader

from cropl.callbacks.checkpoint import Checkpoint
from cropl.callbacks.ema import EMA
from cropl.callbacks.export import Export
from cropl.callbacks.preemption import Preempted
from cropl.parallel import shard

DECAY = 0.8


class Line(L.LightningModule):
    """A frozen layer and one that trains, whose weights are written down at every turn."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.frozen, self.layer = nn.Linear(3, 3).requires_grad_(False), nn.Linear(3, 1)
        self.trained, self.validated, self.exported = [], [], None

    def training_step(self, batch, index):
        return (self.layer(self.frozen(batch)) - batch.prod(1, keepdim=True)).square().mean()

    def on_train_batch_end(self, outputs, batch, index):
        self.trained.append(self.layer.weight.detach().clone())

    def validation_step(self, batch, index):
        self.validated.append(self.layer.weight.detach().clone())

    def configure_optimizers(self):
        return torch.optim.Adam([p for p in self.parameters() if p.requires_grad], lr=0.1)

    def export(self, folder, dtype):
        self.exported = self.layer.weight.detach().clone()


def _fit(folder, steps, ckpt=None, accumulate=1, callbacks=(), module=None, ema=None, saver=None):
    module, ema = module or Line(), ema or EMA(DECAY)
    saver = saver or ModelCheckpoint(folder, "{step}", save_top_k=-1, every_n_train_steps=2, save_last=True)
    trainer = L.Trainer(
        accelerator="cpu", max_steps=steps, logger=False, enable_progress_bar=False, enable_model_summary=False,
        accumulate_grad_batches=accumulate, val_check_interval=3, check_val_every_n_epoch=None,
        num_sanity_val_steps=1, callbacks=[ema, *callbacks, saver],
    )  # fmt: skip
    generator = torch.Generator().manual_seed(1)
    data = [torch.randn(4, 3, generator=generator) for _ in range(steps * accumulate)]
    loaders = (DataLoader(part, batch_size=None) for part in (data, [torch.ones(1, 3)]))
    trainer.fit(module, *loaders, ckpt_path=ckpt, weights_only=True)
    return module


def _expected(start, weights, decay=DECAY):
    averages, average = [], start
    for weight in weights:
        average = decay * average + (1 - decay) * weight
        averages.append(average)
    return averages


def test_validation_and_export_see_the_averages_and_training_does_not(tmp_path):
    plain = _fit(tmp_path / "plain", 6, ema=EMA(1e-9))
    module = _fit(tmp_path / "ema", 6, callbacks=[Export(str(tmp_path / "export"))])
    averages = _expected(Line().layer.weight.detach(), module.trained)
    assert all(torch.equal(a, b) for a, b in zip(module.trained, plain.trained))
    torch.testing.assert_close(module.validated[1:], [averages[2], averages[5]])  # first the sanity check
    assert torch.equal(module.validated[0], Line().layer.weight)
    torch.testing.assert_close([module.exported, module.layer.weight.detach()], [averages[5]] * 2)
    assert torch.equal(module.frozen.weight, Line().frozen.weight)


def test_averages_begin_after_some_steps_and_go_by_steps(tmp_path):
    module = _fit(tmp_path, 5, accumulate=2, ema=EMA(DECAY, start=2))
    stepped = module.trained[1::2]
    torch.testing.assert_close(module.layer.weight.detach(), _expected(stepped[1], stepped[2:])[-1])


def test_a_checkpoint_holds_both_and_continues_with_both(tmp_path):
    whole = _fit(tmp_path / "whole", 6)
    first = _fit(tmp_path / "first", 4)
    saved = torch.load(tmp_path / "first" / "step=4.ckpt", weights_only=True)
    averages = saved["callbacks"]["EMA"]["averages"]
    assert torch.equal(saved["state_dict"]["layer.weight"], first.trained[3])
    assert averages.keys() == {"layer.weight", "layer.bias"}
    torch.testing.assert_close(averages["layer.weight"], first.layer.weight.detach())
    last = torch.load(tmp_path / "first" / "last.ckpt", weights_only=True)
    assert torch.equal(last["state_dict"]["layer.weight"], first.trained[3])
    second = _fit(tmp_path / "second", 6, ckpt=str(tmp_path / "first" / "step=4.ckpt"))
    # Lightning starts this plain list of data anew: what is compared is the average over the steps that were taken.
    wanted = _expected(averages["layer.weight"], second.trained)[-1]
    torch.testing.assert_close(second.layer.weight.detach(), wanted)
    assert len(second.trained) == 2 and len(whole.trained) == 6


def test_a_failure_in_validation_leaves_the_weights(tmp_path):
    class Failing(Line):
        def validation_step(self, batch, index):
            if self.trained:
                raise RuntimeError("no answer")

    module = Failing()
    with pytest.raises(RuntimeError, match="no answer"):
        _fit(tmp_path, 6, module=module)
    assert torch.equal(module.layer.weight, module.trained[-1])


def test_a_signal_in_a_validation_saves_the_weights(tmp_path):
    class Signalled(Line):
        def validation_step(self, batch, index):
            super().validation_step(batch, index)
            if len(self.trained) == 3:
                os.kill(os.getpid(), signal.SIGTERM)

    module = Signalled()
    with pytest.raises(Preempted):
        _fit(tmp_path, 6, module=module, saver=Checkpoint(str(tmp_path), every_n_train_steps=50))
    saved = torch.load(tmp_path / "step-000003" / "checkpoint.ckpt", weights_only=True)
    assert torch.equal(saved["state_dict"]["layer.weight"], module.trained[2])
    averages = saved["callbacks"]["EMA"]["averages"]
    average = _expected(Line().layer.weight.detach(), module.trained)[2]
    torch.testing.assert_close([averages["layer.weight"], module.validated[-1]], [average] * 2)
    assert torch.equal(module.layer.weight, module.trained[2])


def test_whoever_saves_in_a_validation_saves_the_weights(tmp_path):
    class Saving(Line):
        def validation_step(self, batch, index):
            self.trainer.save_checkpoint(tmp_path / "own.ckpt")
            super().validation_step(batch, index)

    module = Saving()
    _fit(tmp_path, 3, module=module)
    saved = torch.load(tmp_path / "own.ckpt", weights_only=True)
    assert torch.equal(saved["state_dict"]["layer.weight"], module.trained[2])
    assert not torch.equal(module.validated[-1], module.trained[2]), "the averages are back in their place"


def test_a_training_that_had_ended_exports_the_averages(tmp_path):
    first = _fit(tmp_path, 4)
    again = _fit(tmp_path, 4, ckpt=str(tmp_path / "step=4.ckpt"), callbacks=[Export(str(tmp_path / "export"))])
    assert not again.trained and torch.equal(again.exported, first.layer.weight)
    assert not torch.equal(again.exported, first.trained[3])


def test_mistakes_are_told(tmp_path):
    with pytest.raises(ValueError, match="decay 1.0"):
        EMA(1.0)
    with pytest.raises(ValueError, match="list EMA ahead of Export"):
        ema, export = EMA(), Export(str(tmp_path / "out"))
        ema.setup(SimpleNamespace(callbacks=[export, ema]), Line(), "fit")
    ema.load_state_dict({"averages": {"other": torch.zeros(1)}})
    with pytest.raises(ValueError, match="of other weights"):
        ema.on_train_start(SimpleNamespace(global_step=0), Line())


def test_shards_are_averaged_where_they_are(tmp_path):
    """One process, but sharded as on many: its own part is averaged, whole averages are saved and dealt out again."""
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    try:
        module, ema, trainer = Line(), EMA(DECAY), SimpleNamespace(global_step=0)
        module.log = lambda *args: None
        shard(module, [module.layer], init_device_mesh("cpu", (1,)), torch.device("cpu"), methods=["training_step"])
        assert isinstance(module.layer.weight, DTensor)
        ema.on_train_start(trainer, module)
        optimizer, seen = module.configure_optimizers(), []
        for trainer.global_step in (1, 2, 3):
            module.training_step(torch.randn(4, 3), 0).backward()
            optimizer.step()
            optimizer.zero_grad()
            ema.on_train_batch_end(trainer, module, None, None, 0)
            seen.append(module.layer.weight.full_tensor().detach().clone())
        wanted = _expected(Line().layer.weight.detach(), seen)[-1]
        saved = ema.state_dict()["averages"]
        torch.testing.assert_close(saved["layer.weight"], wanted)
        batch = torch.randn(4, 3)
        with torch.no_grad():
            raw = module.training_step(batch, 0)
            ema.on_validation_start(trainer, module)
            averaged = module.training_step(batch, 0)
            plain = Line()
            plain.load_state_dict(saved, strict=False)
            assert averaged == pytest.approx(float(plain.training_step(batch, 0))) and averaged != raw
            ema.on_validation_end(trainer, module)
            assert module.training_step(batch, 0) == raw
        again = EMA(DECAY)
        again.load_state_dict({"averages": saved})
        again.on_train_start(trainer, module)
        assert all(torch.equal(value, saved[name]) for name, value in again.state_dict()["averages"].items())
    finally:
        dist.destroy_process_group()
