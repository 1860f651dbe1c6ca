"""The shards data module under a real trainer: complete epochs, exact continuation, and clear refusals."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from cropl.data.manifest import ShardError
from cropl.data.sample import Sample
from cropl.data.writer import ShardWriter
from cropl.datamodules.shards import ShardsDataModule
from cropl.modules.localizer import LocalizerModule
from cropl.testbed.build import build_qwen2_vl
from cropl.testbed.samples import samples
from tests.data.conftest import make_sample


class Recorder(L.LightningModule):
    """Remembers which samples it was given, and fails at a step if asked to."""

    def __init__(self, fail_at: int | None = None) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.calls = 0
        self.trained: list[str] = []
        self.steps: list[list[str]] = []
        self.validated: list[tuple[str, bool]] = []
        self.tested: list[tuple[str, bool]] = []
        self.fail_at = fail_at

    def training_step(self, batch: list[Sample], index: int) -> torch.Tensor:
        if self.calls == self.fail_at:
            raise RuntimeError("stopped")
        self.calls += 1
        self.trained += [sample.key for sample in batch]
        return self.weight * 0

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """What the optimizer step is made of, in the order of the alphabet: how it is dealt out does not matter."""
        done = sum(map(len, self.steps))
        self.steps.append(sorted(self.trained[done:]))

    def validation_step(self, batch: list[Sample], index: int) -> None:
        self.validated += [(sample.key, sample.valid) for sample in batch]

    def test_step(self, batch: list[Sample], index: int) -> None:
        self.tested += [(sample.key, sample.valid) for sample in batch]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        # Asking for the number of steps sets the loader up early; the position must survive that.
        assert self.trainer.estimated_stepping_batches > 0
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    for split, count in (("train", 10), ("val", 5)):
        with ShardWriter(tmp_path / split, samples_per_shard=3) as writer:
            for number in range(count):
                writer.write(make_sample(number, split))
    return {"train_dir": str(tmp_path / "train"), "val_dir": str(tmp_path / "val")}


def trainer(folder: Path, **options: Any) -> L.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "num_sanity_val_steps": 0}
    return L.Trainer(accelerator="cpu", devices=1, default_root_dir=folder, **quiet, **options)


@pytest.fixture(autouse=True)
def _silence(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.ERROR, logger="lightning.pytorch")


def data(folders: dict[str, str], **options: Any) -> ShardsDataModule:
    return ShardsDataModule(**folders, **{"global_batch": 3, "eval_batch": 2, "num_workers": 0, **options})


def uninterrupted(folders: dict[str, str], folder: Path, epochs: int = 3) -> list[str]:
    model = Recorder()
    trainer(folder, max_epochs=epochs, enable_checkpointing=False).fit(model, data(folders))
    return model.trained


def test_epochs_are_complete_and_differ(folders: dict[str, str], tmp_path: Path) -> None:
    model = Recorder()
    trainer(tmp_path, max_epochs=2, enable_checkpointing=False).fit(model, data(folders))
    first, second = model.trained[:12], model.trained[12:]  # 10 samples fill 4 batches of 3
    assert set(first[:10]) == set(second[:10]) == {f"s{i:04d}" for i in range(10)}
    assert first != second and first[10:] == first[:2]
    once = [("s0000", True), ("s0001", True), ("s0002", True), ("s0003", True), ("s0004", True), ("s0000", False)]
    assert model.validated == once * 2


@pytest.mark.parametrize(
    ("stop", "on_exception", "workers"),
    [(1, False, 0), (4, False, 0), (5, False, 0), (5, True, 0), pytest.param(6, False, 2, marks=pytest.mark.slow)],
)
def test_a_stopped_training_continues_at_the_next_sample(
    folders: dict[str, str], tmp_path: Path, stop: int, on_exception: bool, workers: int
) -> None:
    expected = uninterrupted(folders, tmp_path)
    first = Recorder(fail_at=stop)
    when: dict[str, Any] = {"save_on_exception": True} if on_exception else {"every_n_train_steps": stop}
    saver = ModelCheckpoint(tmp_path / "saved", save_top_k=-1, **when)
    with pytest.raises(RuntimeError, match="stopped"):
        trainer(tmp_path, max_epochs=3, callbacks=[saver]).fit(first, data(folders))
    saved = max((tmp_path / "saved").glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns)
    second = Recorder()
    trainer(tmp_path, max_epochs=3, enable_checkpointing=False).fit(
        second, data(folders, num_workers=workers), ckpt_path=str(saved), weights_only=False
    )
    assert first.trained + second.trained == expected


@pytest.mark.parametrize("on_exception", [True, False])
@pytest.mark.parametrize("stop", [0, 1, 3, 5, 8, 11, 14])
@pytest.mark.parametrize("now", [1, 2, 4])
def test_a_stop_inside_an_accumulated_step_does_the_step_again(
    folders: dict[str, str], tmp_path: Path, stop: int, on_exception: bool, now: int
) -> None:
    """Continued with another number of micro-batches too, as on another number of processes."""
    epochs, batch = 3, {"global_batch": 4}
    expected = Recorder()
    trainer(tmp_path, max_epochs=epochs, enable_checkpointing=False).fit(expected, data(folders, **batch))
    first = Recorder(fail_at=stop)
    when: dict[str, Any] = {"save_on_exception": True} if on_exception else {"every_n_train_steps": 1}
    saver = ModelCheckpoint(tmp_path / "saved", save_top_k=-1, **when)
    with pytest.raises(RuntimeError, match="stopped"):
        trainer(tmp_path, max_epochs=epochs, callbacks=[saver]).fit(first, data(folders, micro_batch=2, **batch))
    saved = max((tmp_path / "saved").glob("*.ckpt"), key=lambda path: path.stat().st_mtime_ns, default=None)
    if saved is None:
        assert stop < 2
        return
    second = Recorder()
    runner = trainer(tmp_path, max_epochs=epochs, enable_checkpointing=False)
    module = data(folders, micro_batch=4 // now, **batch)
    runner.fit(second, module, ckpt_path=str(saved), weights_only=False)
    assert first.steps + second.steps == expected.steps and len(expected.steps) == 9
    assert runner.global_step == 9 and runner.current_epoch == epochs and module.consumed == 36


@pytest.mark.parametrize("apart", [2, 3, 5, 7])
@pytest.mark.parametrize("micro", [1, 2, 4])
def test_many_stops_in_many_epochs(folders: dict[str, str], tmp_path: Path, apart: int, micro: int) -> None:
    """Each run goes on from the newest checkpoint, also one that was written right after a resume, inside a step."""
    expected = Recorder()
    trainer(tmp_path, max_epochs=4, enable_checkpointing=False).fit(expected, data(folders, global_batch=4))
    steps: dict[int, list[str]] = {}
    for _ in range(60):
        saved = sorted((tmp_path / "saved").glob("*.ckpt"), key=lambda path: int(path.stem.partition("=")[2]))
        start = int(saved[-1].stem.partition("=")[2]) if saved else 0
        saver = ModelCheckpoint(tmp_path / "saved", "{step}", save_top_k=-1, every_n_train_steps=1)
        runner, part = trainer(tmp_path, max_epochs=4, callbacks=[saver]), Recorder(fail_at=apart + 4 // micro - 1)
        module = data(folders, global_batch=4, micro_batch=micro)
        try:
            runner.fit(part, module, ckpt_path=str(saved[-1]) if saved else None, weights_only=False)
        except RuntimeError:
            pass
        else:
            break
        finally:
            for number, batch in enumerate(part.steps, start):
                assert steps.setdefault(number, batch) == batch
    assert [steps[i] for i in range(12)] == expected.steps and len(steps) == 12
    assert runner.current_epoch == 4 and runner.global_step == 12


def test_a_checkpoint_without_a_position_is_refused(folders: dict[str, str], tmp_path: Path) -> None:
    class Other(ShardsDataModule):
        """Lightning restores a data module's state by its class's name."""

    trainer(tmp_path, max_steps=1, callbacks=[ModelCheckpoint(tmp_path, "one", every_n_train_steps=1)]).fit(
        Recorder(), data(folders)
    )
    other = Other(**folders, global_batch=3, num_workers=0)
    with pytest.raises(ValueError, match="no position of a Other"):
        trainer(tmp_path, max_steps=3, enable_checkpointing=False).fit(
            Recorder(), other, ckpt_path=str(tmp_path / "one.ckpt"), weights_only=False
        )


def test_accumulation_follows_the_global_batch(folders: dict[str, str], tmp_path: Path) -> None:
    runner = trainer(tmp_path, max_steps=2, enable_checkpointing=False)
    module = data(folders, global_batch=4, micro_batch=1)
    runner.fit(Recorder(), module)
    assert runner.accumulate_grad_batches == 4 and runner.global_step == 2 and module.consumed == 8
    with pytest.raises(ValueError, match="accumulate_grad_batches 3 does not fit"):
        trainer(tmp_path, accumulate_grad_batches=3).fit(Recorder(), data(folders, global_batch=4, micro_batch=1))
    with pytest.raises(ValueError, match="global_batch 4 must be a multiple of 1 processes x micro_batch 3"):
        trainer(tmp_path).fit(Recorder(), data(folders, global_batch=4, micro_batch=3))


def test_testing_visits_every_sample_once(folders: dict[str, str], tmp_path: Path) -> None:
    model = Recorder()
    runner = trainer(tmp_path, enable_checkpointing=False)
    runner.test(model, data({"test_dir": folders["val_dir"]}), verbose=False)
    assert [key for key, valid in model.tested if valid] == [f"s{i:04d}" for i in range(5)]


@pytest.mark.parametrize(("change", "named"), [({"seed": 1}, "seed"), ({"global_batch": 2}, "global_batch")])
def test_a_position_in_other_data_is_refused(
    folders: dict[str, str], tmp_path: Path, change: dict[str, int], named: str
) -> None:
    runner = trainer(tmp_path, max_steps=1, enable_checkpointing=False)
    runner.fit(Recorder(), data(folders))
    runner.save_checkpoint(tmp_path / "one.ckpt")
    with pytest.raises(ValueError, match=named):
        trainer(tmp_path, max_steps=3, enable_checkpointing=False).fit(
            Recorder(), data(folders, **change), ckpt_path=str(tmp_path / "one.ckpt"), weights_only=False
        )


def test_missing_folders_and_damaged_shards_are_named(folders: dict[str, str], tmp_path: Path) -> None:
    runner: Callable[[ShardsDataModule], None] = lambda module: trainer(  # noqa: E731
        tmp_path, max_steps=1, enable_checkpointing=False
    ).fit(Recorder(), module)
    with pytest.raises(ValueError, match="train_dir"):
        runner(ShardsDataModule(val_dir=folders["val_dir"]))
    shard = tmp_path / "train" / "samples-000001.tar"
    shard.write_bytes(shard.read_bytes()[:1024])
    with pytest.raises(ShardError, match=r"samples-000001\.tar"):
        runner(data(folders))


def test_a_localizer_trains_on_shards_and_scores_each_sample_once(tmp_path: Path) -> None:
    """With the collate that the module brings, in a worker process."""
    for split, count in (("train", 8), ("val", 5)):
        with ShardWriter(tmp_path / split, samples_per_shard=4) as writer:
            for sample in samples(split, count):
                writer.write(sample)
    module = LocalizerModule(str(build_qwen2_vl(tmp_path / "model", layers=2, width=64)), lr=1e-3)
    data = ShardsDataModule(str(tmp_path / "train"), str(tmp_path / "val"), global_batch=4, eval_batch=3, num_workers=1)
    fit = trainer(tmp_path, max_epochs=1)
    fit.fit(module, datamodule=data)
    assert fit.global_step == 2 and 0 <= fit.callback_metrics["val/mean_recall"] <= 1
    scores: list[int] = []
    module.on_validation_epoch_end = lambda: scores.append(int(module.recall.compute()["n"]))  # type: ignore[method-assign]
    fit.validate(module, datamodule=data, verbose=False)
    assert scores == [5]
