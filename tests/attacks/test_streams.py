"""Streams over data that is too small, too uneven, damaged or changed: complete and equal on all ranks, or an error."""

import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import lightning as L
import pytest
import torch

from cropl.data.manifest import ShardError
from cropl.data.plan import Plan, evaluation_batches
from cropl.data.sample import Sample
from cropl.data.shards import ShardReader
from cropl.data.stream import SampleStream, StartMethod, StreamLoader
from cropl.datamodules.shards import ShardsDataModule
from tests.attacks.forged import seal
from tests.data.conftest import write_shards as write_shards

Write = Callable[..., Path]


class Fails(L.LightningModule):
    """Must never be asked for a step."""

    def training_step(self, batch: list[Sample], index: int) -> torch.Tensor:
        raise AssertionError("a step was taken")

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)


def fit(module: ShardsDataModule, folder: Path) -> None:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False}
    L.Trainer(accelerator="cpu", max_steps=1, default_root_dir=folder, enable_checkpointing=False, **quiet).fit(  # type: ignore[arg-type]
        Fails(), module
    )


@pytest.mark.parametrize("damage", ["cut", "flip", "empty", "page", "missing"])
def test_training_on_damaged_shards_fails_before_the_first_step(
    write_shards: Write, tmp_path: Path, damage: str
) -> None:
    folder = write_shards()
    path = folder / "samples-000001.tar"
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    else:
        flipped = data[:700] + bytes([data[700] ^ 1]) + data[701:]
        path.write_bytes({"cut": data[:-600], "flip": flipped, "empty": b"", "page": b"<html>503</html>"}[damage])
    with pytest.raises(ShardError, match=r"samples-000001\.tar"):
        fit(ShardsDataModule(str(folder), global_batch=2, num_workers=0), tmp_path)


@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("world", [1, 4])
def test_fewer_samples_than_a_global_batch(write_shards: Write, count: int, world: int) -> None:
    """One step an epoch, in which samples repeat, with equally many of them on every rank."""
    plan = Plan(ShardReader(write_shards(count)), global_batch=8)
    dealt = plan.deal(plan.epoch(0), world, 2)
    assert len(plan) == 1 and dealt.shape == (1, 8 // (2 * world), world, 2)
    came = Counter(dealt.ravel().tolist())
    assert set(came) == set(range(count)) and max(came.values()) - min(came.values()) <= 1


@pytest.mark.parametrize(
    ("workers", "method"), [(4, "fork"), (2, "forkserver"), pytest.param(2, "spawn", marks=pytest.mark.slow)]
)
def test_fewer_shards_than_ranks_and_workers(write_shards: Write, workers: int, method: StartMethod) -> None:
    """One shard, three ranks: worker processes know neither rank nor world, and still nothing comes twice."""
    reader = ShardReader(write_shards(7, per_shard=10))
    seen: list[str] = []
    for rank in range(3):
        stream = SampleStream(reader, *evaluation_batches(7, 2, rank, 3))
        batches = list(StreamLoader(lambda stream=stream: stream, len(stream), workers, method))  # type: ignore[misc]
        assert len(batches) == 2
        seen += [sample.key for batch in batches for sample in batch if sample.valid]
    assert sorted(seen) == [f"s{i:04d}" for i in range(7)]


def test_a_manifest_that_changed_since_the_checkpoint_is_refused_with_both_fingerprints(write_shards: Write) -> None:
    module = ShardsDataModule(str(write_shards(10)), global_batch=2)
    module.setup("fit")
    saved = module.state_dict()
    other = ShardsDataModule(str(write_shards(9, name="other")), global_batch=2)
    other.setup("fit")
    ours, theirs = saved["fingerprint"], other.state_dict()["fingerprint"]
    with pytest.raises(ValueError, match=f"fingerprint: '{ours}', now '{theirs}'"):
        other.load_state_dict(saved)


@pytest.mark.parametrize(
    "region", ["[7,0,0,1]", "[0,0,8,1]", "[-1,1,1] ", "[0,1,1.5]", '"0,0,3,3"', "[null   ]", "[0,0,0,1,"]
)
def test_a_bad_region_is_skipped_in_training_and_an_error_in_evaluation(write_shards: Write, region: str) -> None:
    folder = write_shards(4)
    path = folder / "samples-000000.tar"
    data = path.read_bytes()
    old = next(line for line in data.split(b'"region":')[1:])[:9]
    assert json.loads(old) and len(region) == len(old)
    path.write_bytes(data.replace(b'"region":' + old, b'"region":' + region.encode(), 1))
    seal(folder)
    reader = ShardReader(folder, verify="full")
    stream = SampleStream(reader, *evaluation_batches(4, 4))
    with pytest.raises(ShardError, match="s0000"):
        list(StreamLoader(lambda: stream, 1))
    stream.skip_bad = True
    (batch,) = StreamLoader(lambda: stream, 1, max_skipped=1)
    assert [(sample.key, sample.valid) for sample in batch][:2] == [("s0001", False), ("s0001", True)]


def test_a_truncated_predecessor_never_lends_its_image(write_shards: Write) -> None:
    """Equal keys in two shards, the first one cut between record and image: what is read belongs together."""
    first, second = write_shards(2, name="a"), write_shards(2, name="b")
    shard = first / "samples-000000.tar"
    reader = ShardReader(first)
    image = int(reader._span_N4[1, 0])
    shard.write_bytes(shard.read_bytes()[:image])
    with pytest.raises(ShardError, match=r"samples-000000\.tar"):
        ShardReader(first)
    with pytest.raises(ShardError, match="cut off"):
        ShardReader(first, verify="off")[1]
    assert ShardReader(second)[1].key == "s0001"
