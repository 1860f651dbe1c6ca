"""Localization, instruction, mixed and benchmark shards: what each refuses, and how the mix is made."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cropl.data.sample import Sample
from cropl.data.writer import ShardWriter
from cropl.datamodules.benchmark import BenchmarkShards
from cropl.datamodules.instruction import InstructionShards
from cropl.datamodules.localization import LocalizationShards
from cropl.datamodules.mixed import MixedShards
from tests.data.conftest import make_sample

Write = Callable[..., str]


@pytest.fixture
def write(tmp_path: Path) -> Write:
    def write(name: str, count: int, **changes: Any) -> str:
        with ShardWriter(tmp_path / name, samples_per_shard=4) as writer:
            for number in range(count):
                writer.write(replace(make_sample(number), key=f"{name}-{number}", source=name, **changes))
        return str(tmp_path / name)

    return write


def sources(batches: Any) -> list[str]:
    return [sample.key.partition("-")[0] for batch in batches for sample in batch]


def test_localization_needs_boxes(write: Write) -> None:
    module = LocalizationShards([write("boxed", 6), write("bare", 3, boxes=[])], num_workers=0)
    with pytest.raises(ValueError, match=r"without evidence boxes: bare \(3\)"):
        module.setup("fit")
    LocalizationShards(module.folders["train"][0], num_workers=0).setup("fit")  # type: ignore[index]


def test_instruction_needs_answers(write: Write) -> None:
    answered, asked = write("answered", 3), write("asked", 2, answers=[])
    InstructionShards(answered, global_batch=2).setup("fit")
    with pytest.raises(ValueError, match="source 'asked' has no answers"):
        InstructionShards([answered, asked], global_batch=2).setup("fit")


def test_a_mix_has_every_sample_once(write: Write) -> None:
    module = MixedShards(write("boxes", 8), write("talks", 4, boxes=[]), global_batch=4, num_workers=0)
    module.setup("fit")
    found = sources(module.train_dataloader())
    assert len(found) == 12 and found.count("talks") == 4
    assert len(set(found[:4])) == 2 or len(set(found[4:8])) == 2  # mixed, not one after the other


@pytest.mark.parametrize(("share", "boxes", "talks"), [(0.5, 4, 4), (0.8, 8, 2), (0.9, 8, 1)])
def test_a_share_subsamples_the_larger_part(write: Write, share: float, boxes: int, talks: int) -> None:
    module = MixedShards(
        write("boxes", 8), [write("talks", 4, boxes=[])], localization_share=share, global_batch=1, num_workers=0
    )
    module.setup("fit")
    module.setup("fit")  # every stage calls it: the share is taken once
    found = sources(module.train_dataloader())
    assert (found.count("boxes"), found.count("talks")) == (boxes, talks)


def test_a_mix_refuses_what_it_cannot_mix(write: Write) -> None:
    boxes, talks = write("boxes", 4), write("talks", 4, boxes=[])
    with pytest.raises(ValueError, match="without evidence boxes: talks"):
        MixedShards(talks, boxes).setup("fit")
    with pytest.raises(ValueError, match="between 0 and 1"):
        MixedShards(boxes, talks, localization_share=1.5)
    with pytest.raises(ValueError, match="share sample keys"):
        MixedShards(boxes, boxes).setup("fit")


def test_a_benchmark_is_answered_once(write: Write) -> None:
    module = BenchmarkShards(write("asked", 5, answers=[], boxes=[]), eval_batch=2, num_workers=0)
    module.setup("test")
    seen: list[Sample] = [sample for batch in module.test_dataloader() for sample in batch]
    assert [sample.key for sample in seen if sample.valid] == [f"asked-{i}" for i in range(5)] and len(seen) == 6
    with pytest.raises(ValueError, match="train_dir is missing"):
        module.setup("fit")
