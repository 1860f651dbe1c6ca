"""Tokens a second and FLOPs of a training step, against counts of the operations that were done."""

from __future__ import annotations

import time

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader
from torch.utils.flop_counter import FlopCounterMode

from cropl.callbacks.checkpoint import Checkpoint
from cropl.callbacks.throughput import Throughput, step_flops
from cropl.metrics.cost import attention_flops
from cropl.models.lora import add_lora
from cropl.models.vlm import load_vlm
from cropl.modules.instruction import InstructionModule
from cropl.modules.localizer import LocalizerModule
from cropl.testbed.samples import samples
from tests.reference.checkpoints import tiny_llava as tiny_llava
from tests.reference.checkpoints import tiny_localizer as tiny_localizer
from tests.reference.qwen2_5_vl import build_qwen2_5_vl

PAUSE = 0.15


class Slow(InstructionModule):
    """Says what it computes, and takes its time."""

    def training_step(self, batch, index):
        loss = super().training_step(batch, index)
        rows = self._rows(batch, 1)
        self.computed = ([len(rows.packed.input_ids_BS[0])], int((rows.packed.turn_BS >= 0).sum()))
        time.sleep(PAUSE)
        return loss


class Rates(L.Callback):
    def __init__(self):
        self.seen = []

    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.seen.append({name: float(value) for name, value in trainer.callback_metrics.items() if "second" in name})


def _fit(module, count, batch_size=1, peak=None, callbacks=(), **options):
    rates = Rates()
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, num_sanity_val_steps=0, enable_model_summary=False,
        callbacks=[Throughput(peak), rates, *callbacks], **{"enable_checkpointing": bool(callbacks), **options},
    )  # fmt: skip
    loader = DataLoader(samples("train", count), batch_size, collate_fn=module.collate)
    trainer.fit(module, loader, DataLoader(samples("val", 2), 1, collate_fn=module.collate))
    return trainer, rates


def test_rates_are_logged_where_steps_are(tiny_llava):
    module = Slow(tiny_llava)
    trainer, rates = _fit(module, 6, peak=1e9, max_steps=3, accumulate_grad_batches=2, log_every_n_steps=2)
    found = trainer.callback_metrics
    samples_per_second = float(found["train/samples_per_second"])
    assert 0.1 / PAUSE < samples_per_second < 1 / PAUSE
    (length,), _ = module.computed
    assert float(found["train/tokens_per_second"]) == pytest.approx(samples_per_second * length, rel=0.2)
    flops = float(found["train/tflops_per_second"]) * 1e12
    assert float(found["train/mfu"]) == pytest.approx(flops / 1e9, rel=1e-4)
    assert [bool(seen) for seen in rates.seen] == [False] * 3 + [
        True
    ] * 3  # from the second step on, of two batches each


def test_validation_takes_no_time_from_training(tiny_llava):
    class Pausing(Slow):
        def on_validation_epoch_start(self):
            time.sleep(2.0)

    trainer, _ = _fit(Pausing(tiny_llava), 4, max_steps=4, log_every_n_steps=4, val_check_interval=2)
    assert float(trainer.callback_metrics["train/samples_per_second"]) > 4 / (2.0 + 4 * PAUSE)


def test_a_checkpoint_ahead_of_a_validation_begins_anew(tiny_llava, tmp_path):
    """The interval that it falls into is not logged, and the next one begins with its first batch."""
    saver = Checkpoint(str(tmp_path), every_n_train_steps=2)
    module, started = Slow(tiny_llava), time.perf_counter()
    trainer, rates = _fit(
        module, 6, max_steps=6, log_every_n_steps=2, val_check_interval=2, callbacks=[saver], default_root_dir=tmp_path
    )
    elapsed = time.perf_counter() - started
    rates = [seen["train/samples_per_second"] for seen in rates.seen if seen]
    assert rates and all(1 / elapsed < rate < 1 / PAUSE for rate in rates)


def test_without_a_known_peak_there_is_no_mfu(tiny_llava):
    trainer, _ = _fit(Slow(tiny_llava), 1, max_steps=1, log_every_n_steps=1)
    assert "train/mfu" not in trainer.callback_metrics and "train/tokens_per_second" in trainer.callback_metrics


def test_a_module_that_does_not_say_what_it_computes_is_an_error(tiny_llava):
    class Silent(Slow):
        def training_step(self, batch, index):
            loss = super().training_step(batch, index)
            self.computed = None
            return loss

    with pytest.raises(ValueError, match="Silent does not say what a step computes"):
        _fit(Silent(tiny_llava), 1, max_steps=1)
    with pytest.raises(ValueError, match="peak_flops 0"):
        Throughput(0)


@pytest.mark.parametrize("family", ["llava", "qwen2_vl"])
@pytest.mark.parametrize("tune", ["full", "projector", "lora"])
def test_flops_of_a_step_are_those_that_are_done(tiny_llava, tiny_localizer, family, tune):
    """The counter sees linear layers, also adapters'; what it makes of attention is left out on both sides."""
    module = InstructionModule({"llava": tiny_llava, "qwen2_vl": tiny_localizer}[family]).train()
    vlm = module.vlm
    if tune == "projector":
        vlm.decoder.requires_grad_(False)
        vlm.model.get_output_embeddings().requires_grad_(False)
    if tune == "lora":
        add_lora(vlm, rank=1, targets=["q_proj"])
        vlm.projector.requires_grad_(True)
    module.log = module.log_dict = lambda *args, **kwargs: None
    batch = module.collate(samples("train", 1))
    with FlopCounterMode(display=False) as counter:
        module.training_step(batch, 0).backward()
    done = sum(count for name, count in counter.get_flop_counts()["Global"].items() if "attention" not in str(name))
    rows = module._rows(batch, 1)
    lengths, supervised = [rows.packed.input_ids_BS.shape[1]], int((rows.packed.turn_BS >= 0).sum())
    said = step_flops(vlm, lengths, supervised, batch["grids"])
    said -= 3 * attention_flops(vlm.decoder.config, lengths * vlm.num_layers)
    assert torch.is_grad_enabled() and said == pytest.approx(done, rel=0.12)


def test_a_tower_with_windows_has_its_share(tmp_path):
    vlm = load_vlm(str(build_qwen2_5_vl(tmp_path)), attn_implementation="eager")
    vlm.model.requires_grad_(False)
    pixels = vlm.prepare.pixels([sample.picture() for sample in samples("train", 7)[::6]])
    grids = [(rows, columns) for _, rows, columns in pixels["image_grid_thw"].tolist()]
    with FlopCounterMode(display=False) as counter:
        vlm.model.model.get_image_features(pixels["pixel_values"], pixels["image_grid_thw"])
    share = step_flops(vlm, [100], 10, grids) - step_flops(vlm, [100], 10, [])
    assert len(grids) == 2 and share == counter.get_total_flops()
    vlm.tower.blocks.requires_grad_(True)
    assert step_flops(vlm, [100], 10, grids) - step_flops(vlm, [100], 10, []) == 3 * share


def test_a_localizer_with_windows_trains_with_rates(tmp_path):
    module = LocalizerModule(str(build_qwen2_5_vl(tmp_path)))
    trainer, _ = _fit(module, 2, max_steps=1, limit_val_batches=0, log_every_n_steps=1)
    assert float(trainer.callback_metrics["train/tflops_per_second"]) > 0
