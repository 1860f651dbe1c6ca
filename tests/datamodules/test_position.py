"""The position under unusual uses of a trainer: fitting twice, testing in between, limits, and samples left out."""

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from cropl.datamodules.benchmark import BenchmarkShards
from cropl.datamodules.position import set_counters
from cropl.datamodules.shards import ShardsDataModule
from tests.data.conftest import write_shards as write_shards
from tests.data.test_stream import damage
from tests.datamodules.test_shards import Recorder, trainer

Write = Callable[..., Path]


def data(folder: Path, **options: Any) -> ShardsDataModule:
    return ShardsDataModule(str(folder), **{"global_batch": 4, "num_workers": 0, **options})


def test_another_training_starts_at_the_start(write_shards: Write, tmp_path: Path) -> None:
    module, first, second = data(write_shards(20)), Recorder(), Recorder()
    trainer(tmp_path, max_steps=3, enable_checkpointing=False).fit(first, module)
    runner = trainer(tmp_path, max_epochs=1, enable_checkpointing=False)
    runner.fit(second, module)
    assert second.steps[:3] == first.steps and len(second.steps) == 5 and module.consumed == 20
    runner.fit_loop.max_epochs = 2
    runner.fit(third := Recorder(), module)  # the same trainer goes on
    assert len(third.steps) == 5 and third.steps != second.steps and module.consumed == 40


def test_a_step_that_failed_does_not_count(write_shards: Write, tmp_path: Path) -> None:
    module = data(write_shards(20), micro_batch=2)
    with pytest.raises(RuntimeError, match="stopped"):
        trainer(tmp_path, max_epochs=1, enable_checkpointing=False).fit(Recorder(fail_at=5), module)
    whole = Recorder()
    trainer(tmp_path, max_epochs=1, enable_checkpointing=False).fit(whole, module)
    assert len(whole.steps) == 5 and module.consumed == 20


def test_a_checkpoint_is_tested_without_moving_the_position(write_shards: Write, tmp_path: Path) -> None:
    folder = write_shards(20)
    module = data(folder, val_dir=str(folder))
    saver = ModelCheckpoint(tmp_path, "{step}", every_n_train_steps=2, save_top_k=-1)
    runner = trainer(tmp_path, max_steps=4, callbacks=[saver], limit_train_batches=4)
    runner.fit(Recorder(), module)
    options = {"ckpt_path": str(tmp_path / "step=2.ckpt"), "weights_only": False, "verbose": False}
    runner.validate(Recorder(), module, **options)  # type: ignore[arg-type]
    assert module.consumed == 16
    runner.test(Recorder(), BenchmarkShards(str(folder), num_workers=0), **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overfit_batches": 2}, "overfit_batches"),
        ({"limit_train_batches": 3}, "ends epochs inside an optimizer step of 2 batches"),
        ({"limit_train_batches": 0.5}, "ends epochs inside"),
    ],
)
def test_limits_that_would_split_a_step_are_refused(
    write_shards: Write, tmp_path: Path, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        trainer(tmp_path, max_epochs=2, **options).fit(Recorder(), data(write_shards(20), micro_batch=2))


def test_a_limited_run_is_not_continued(write_shards: Write, tmp_path: Path) -> None:
    module = data(write_shards(20))
    runner = trainer(tmp_path, max_steps=2, enable_checkpointing=False)
    runner.fit(Recorder(), module)
    runner.save_checkpoint(tmp_path / "two.ckpt")
    for limit in (1, 3, 0.5):
        with pytest.raises(ValueError, match="cannot be continued with limit_train_batches"):
            trainer(tmp_path, max_steps=4, limit_train_batches=limit).fit(
                Recorder(), module, ckpt_path=str(tmp_path / "two.ckpt"), weights_only=False
            )


def test_a_dry_run_works(write_shards: Write, tmp_path: Path) -> None:
    trainer(tmp_path, fast_dev_run=True).fit(model := Recorder(), data(write_shards(20), micro_batch=1))
    assert len(model.trained) == 1


@pytest.mark.parametrize("micro_batch", [1, 2, None])
def test_a_bad_sample_is_told_and_counted(
    write_shards: Write, tmp_path: Path, caplog: pytest.LogCaptureFixture, micro_batch: int | None
) -> None:
    module = data(write_shards(20), micro_batch=micro_batch, max_bad=0.05, verify="size")
    module.setup("fit")
    damage(module.readers["train"], 7)

    class Logged(Recorder):
        def training_step(self, batch: list[Any], index: int) -> Any:
            return super().training_step([sample for sample in batch if sample.valid], index)

    runner, model = trainer(tmp_path, max_epochs=1, enable_checkpointing=False), Logged()
    with caplog.at_level(logging.WARNING, logger="cropl.data.stream"):
        runner.fit(model, module)
    assert sorted(model.trained) == sorted(f"s{i:04d}" for i in range(20) if i != 7)
    assert [record.getMessage() for record in caplog.records if "s0007" in record.getMessage()]
    assert runner.callback_metrics["train/skipped"] == 1


def test_counters_of_an_epoch_that_began_by_resuming() -> None:
    """Lightning leaves `ready` and `started` behind there; with them it would start the epoch anew."""
    counts = {"ready": 1, "started": 1, "processed": 1, "completed": 0}
    epoch = {"ready": 1, "started": 1, "processed": 1, "completed": 1}
    loops: dict[str, Any] = {
        "epoch_loop.batch_progress": {"total": {**counts}, "current": {**counts}, "is_last_batch": False},
        "epoch_loop.state_dict": {"_batches_that_stepped": 5},
        "epoch_progress": {"total": {**epoch}, "current": {**epoch}},
    }
    set_counters(loops, steps=8, per_epoch=6, old_micro=4, micro=2)
    reached = {"ready": 4, "started": 4, "processed": 4, "completed": 3}
    assert loops["epoch_loop.batch_progress"]["current"] == reached
    assert loops["epoch_progress"]["total"] == {"ready": 2, "started": 2, "processed": 1, "completed": 1}
    assert loops["epoch_loop.state_dict"]["_batches_that_stepped"] == 7


def test_an_error_in_a_worker_is_one_line(write_shards: Write, tmp_path: Path) -> None:
    module = data(write_shards(20), num_workers=1, start_method="fork", max_bad=0, verify="size")
    module.setup("fit")
    damage(module.readers["train"], 7)
    with pytest.raises(ValueError, match="s0007") as caught:
        trainer(tmp_path, max_epochs=1, enable_checkpointing=False).fit(Recorder(), module)
    assert "Traceback" not in str(caught.value)
