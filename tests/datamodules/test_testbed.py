"""Evaluation batches visit every sample once over any number of processes, with equal steps and marked padding.

Training batches come in an order that is a function of seed and epoch, also where a run is continued.
"""

from __future__ import annotations

import lightning as L
import pytest
import torch

from cropl.datamodules.testbed import EpochOrder, MarkedBatches, ResumableLoader, TestbedScenes
from cropl.testbed.build import build_qwen2_vl


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("count", [1, 7, 16, 33])
def test_every_sample_once_and_equal_steps(world, count):
    ranks = [list(MarkedBatches(list(range(count)), 4, rank, world)) for rank in range(world)]
    assert len({len(batches) for batches in ranks}) == 1
    assert all(len(b["samples"]) == 4 == len(b["valid"]) for batches in ranks for b in batches)
    seen = [s for batches in ranks for b in batches for s, ok in zip(b["samples"], b["valid"]) if ok]
    assert sorted(seen) == list(range(count))


class Numbers(L.LightningDataModule):
    """Ten numbers, in the loader of the testbed's scenes."""

    def train_dataloader(self):
        order = EpochOrder(range(10), 1, 0, seed=3, drop_last=True)
        return ResumableLoader(range(10), 2, sampler=order, drop_last=True)


class Noted(L.LightningModule):
    """Trains one weight, and notes what it is given."""

    def __init__(self):
        super().__init__()
        self.weight, self.seen = torch.nn.Parameter(torch.zeros(1)), []

    def training_step(self, batch, index):
        self.seen.append((self.current_epoch, index, batch.tolist()))
        return self.weight.sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def _seen(folder, steps, ckpt=None):
    saved = L.pytorch.callbacks.ModelCheckpoint(folder, every_n_train_steps=1, save_top_k=-1, filename="{step}")
    trainer = L.Trainer(
        max_steps=steps, accelerator="cpu", logger=False, callbacks=[saved],
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    module = Noted()
    trainer.fit(module, Numbers(), ckpt_path=ckpt)
    return module.seen


@pytest.mark.filterwarnings("error:.*not resumable")
@pytest.mark.parametrize("stopped", [1, 3, 5, 7, 10, 11])
def test_a_continued_run_sees_what_the_whole_run_saw(tmp_path, stopped):
    whole = _seen(tmp_path / "whole", 14)
    assert [sorted(n for _, _, batch in whole[i : i + 5] for n in batch) for i in (0, 5)] == [list(range(10))] * 2
    assert [batch for *_, batch in whole[:5]] != [batch for *_, batch in whole[5:10]]
    continued = _seen(tmp_path / "rest", 14, tmp_path / "whole" / f"step={stopped}.ckpt")
    assert continued == whole[stopped:]


def test_the_order_is_shared_out_over_processes():
    ranks = [EpochOrder(range(8), 2, rank, seed=1, drop_last=True) for rank in range(2)]
    for order in ranks:
        order.set_epoch(4)
    assert sorted([*ranks[0], *ranks[1]]) == list(range(8)) and list(ranks[0]) == list(ranks[0])


def test_caches_are_built_before_setup(tmp_path):
    checkpoint = str(build_qwen2_vl(tmp_path / "model", layers=1, width=64))
    data = TestbedScenes(checkpoint, scenes=2, val_scenes=1, batch_size=1, cache=str(tmp_path / "cache"))
    data.prepare_data()
    built = {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
    data.setup("fit")
    assert len(data.train_set) == 2 and len(data.val_set) == 1
    assert built and built == {path: path.stat().st_mtime_ns for path in (tmp_path / "cache").rglob("*")}
