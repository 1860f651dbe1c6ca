"""Localization, instruction, mixed and benchmark shards: what each refuses, and how the mix is made."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cropl.data.manifest import Manifest
from cropl.data.sample import Sample
from cropl.data.writer import ShardWriter
from cropl.datamodules.benchmark import BenchmarkShards
from cropl.datamodules.instruction import InstructionShards
from cropl.datamodules.localization import LocalizationShards
from cropl.datamodules.mixed import MixedShards
from cropl.grid import Region
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
    with pytest.raises(ValueError, match=r"samples without an answer: asked \(2\)"):
        InstructionShards([answered, asked], global_batch=2).setup("fit")
    InstructionShards([answered, asked], global_batch=2, weights={"asked": 0}).setup("fit")
    with pytest.raises(ValueError, match="without an answer: asked"):  # weights leave nothing out of validation
        InstructionShards(answered, asked, global_batch=2, weights={"asked": 0}).setup("fit")


def test_every_answer_is_looked_for(tmp_path: Path) -> None:
    with ShardWriter(tmp_path / "some") as writer:
        for number in range(5):
            writer.write(replace(make_sample(number), answers=[] if number in (2, 4) else ["Yes."]))
    with pytest.raises(ValueError, match=r"without an answer: numbers \(2\)"):
        InstructionShards(str(tmp_path / "some")).setup("fit")


def test_a_weight_of_0_leaves_a_source_out(write: Write) -> None:
    """Photographs with boxes and with captions lie in one folder, as the recipe data/photos builds them."""
    photos = [write("photos", 4), write("captions", 3, boxes=[])]
    module = LocalizationShards(photos, global_batch=2, num_workers=0, weights={"captions": 0})
    module.setup("fit")
    assert set(sources(module.train_dataloader())) == {"photos"}
    with pytest.raises(ValueError, match=r"without evidence boxes: captions \(3\)"):
        LocalizationShards(photos, photos, global_batch=2, weights={"captions": 0}).setup("fit")
    mixed = MixedShards(photos, write("talks", 8, boxes=[]), 0.5, {"captions": 0}, global_batch=1, num_workers=0)
    mixed.setup("fit")
    found = sources(mixed.train_dataloader())
    assert (found.count("photos"), found.count("captions"), found.count("talks")) == (4, 0, 4)
    with pytest.raises(ValueError, match="no sample of the part 'instruction'"):
        MixedShards(photos[0], photos[1], weights={"captions": 0}).setup("fit")


def test_a_mix_has_every_sample_once(write: Write) -> None:
    module = MixedShards(write("boxes", 32), write("talks", 16, boxes=[]), global_batch=8, num_workers=0)
    module.setup("fit")
    found = sources(module.train_dataloader())
    assert len(found) == 48 and found.count("talks") == 16
    assert all(len(set(found[first : first + 8])) == 2 for first in range(0, 48, 8))  # in every global batch


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
    asked = write("asked", 3, answers=[])
    for unanswered in ((asked, talks), (boxes, asked), (boxes, talks, asked)):
        with pytest.raises(ValueError, match=r"samples without an answer: asked \(3\)"):
            MixedShards(*unanswered[:2], val_dir=unanswered[2] if unanswered[2:] else None).setup("fit")


def test_a_source_in_both_parts_has_no_weight_of_its_own(tmp_path: Path) -> None:
    for name, boxes in (("boxes", [(0, 0, 4, 3)]), ("talks", [])):
        with ShardWriter(tmp_path / name) as writer:
            writer.write(replace(make_sample(0), key=name, boxes=boxes))
    with pytest.raises(ValueError, match="sources numbers are in both parts"):
        MixedShards(str(tmp_path / "boxes"), str(tmp_path / "talks")).setup("fit")


def test_a_mix_reads_its_manifests_once(write: Write, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[str] = []
    real = Manifest.read
    monkeypatch.setattr(Manifest, "read", lambda folder: read.append(Path(folder).name) or real(folder))
    MixedShards(write("boxes", 4), write("talks", 4, boxes=[]), global_batch=4).setup("fit")
    assert read == ["boxes", "talks"]


def test_a_benchmark_is_answered_once(write: Write) -> None:
    module = BenchmarkShards(write("asked", 5, answers=[], boxes=[]), eval_batch=2, num_workers=0)
    module.setup("predict")
    seen: list[Sample] = [sample for batch in module.predict_dataloader() for sample in batch]
    assert [sample.key for sample in seen if sample.valid] == [f"asked-{i}" for i in range(5)] and len(seen) == 6
    with pytest.raises(ValueError, match="train_dir is missing"):
        module.setup("fit")


def test_a_benchmark_needs_answers_to_score_and_images(write: Write) -> None:
    asked, answered = write("asked", 5, answers=[]), write("answered", 2)
    module = BenchmarkShards([answered, asked], num_workers=0)
    module.setup("predict")
    with pytest.raises(ValueError, match=r"without an answer: asked \(5\).*or use `predict`"):
        module.setup("test")
    BenchmarkShards(answered).setup("test")
    text = write("text", 3, image=None, width=0, height=0, boxes=[], region=Region.full())
    for stage in ("test", "predict"):
        with pytest.raises(ValueError, match=r"without an image: text \(3\).*without the rows that are text alone"):
            BenchmarkShards([answered, text]).setup(stage)
