"""Shards of the testbed's questions, built once for the trainings of this folder."""

from __future__ import annotations

from pathlib import Path

import pytest

from cropl.data.sample import Sample
from cropl.data.writer import ShardWriter
from cropl.grid import Region
from cropl.testbed.samples import samples


@pytest.fixture(scope="session")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folders ``boxes``, ``talks`` and ``val``."""
    root = tmp_path_factory.mktemp("recipes")
    located = [sample for sample in samples("train", 24) if sample.boxes]
    with ShardWriter(root / "boxes", samples_per_shard=8) as writer:
        for sample in located:
            writer.write(sample)
    with ShardWriter(root / "talks", samples_per_shard=8) as writer:
        for i in range(10):
            writer.write(
                Sample(
                    key=f"text-{i}",
                    question="What word is on the sign?",
                    answers=["red star"],
                    boxes=[],
                    width=0,
                    height=0,
                    region=Region.full(),
                    kind="",
                    source="texts",
                    split="train",
                    image=None,
                    followups=[("And how many ?", "two")] * (i % 2),
                )  # fmt: skip
            )
    with ShardWriter(root / "val", samples_per_shard=8) as writer:
        for sample in samples("val", 6):
            writer.write(sample)
    return root
