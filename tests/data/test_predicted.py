"""Regions that were predicted beforehand come with their samples, all of them, and are part of the data's identity."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from cropl.data.collate import SampleCollate
from cropl.data.predicted import read_regions
from cropl.data.writer import ShardWriter
from cropl.datamodules.shards import ShardsDataModule
from cropl.grid import Region
from cropl.models.region_sources import FromFile
from cropl.models.vlm import load_vlm
from tests.data.conftest import make_sample
from tests.reference.checkpoints import tiny_llava as tiny_llava


@pytest.fixture
def folders(tmp_path: Path) -> dict[str, str]:
    """Five samples to train on, one of them a text and one of the source "left out"; two to validate on."""
    for split, first, count in (("train", 0, 5), ("val", 3, 2)):
        with ShardWriter(tmp_path / split, samples_per_shard=2) as writer:
            for number in range(first, first + count):
                sample = make_sample(number, split)
                if split == "train" and number == 1:
                    sample = replace(sample, image=None, boxes=[], width=0, height=0, region=Region.full())
                if split == "train" and number == 2:
                    sample = replace(sample, source="left out")
                writer.write(sample)
    return {"train_dir": str(tmp_path / "train"), "val_dir": str(tmp_path / "val")}


def write(path: Path, keys: list[int], shift: int = 0) -> str:
    rows = [{"key": f"s{key:04d}", "region": [key, shift, 7, 7], "question": "?"} for key in keys]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def data(folders: dict[str, str], regions: Any, **options: Any) -> ShardsDataModule:
    return ShardsDataModule(**folders, global_batch=5, num_workers=0, regions=regions, **options)


def test_every_sample_comes_with_its_region(folders: dict[str, str], tmp_path: Path, tiny_llava: str) -> None:
    module = data(folders, write(tmp_path / "regions.jsonl", [4, 3, 2, 0, 6]))
    module.setup("fit")
    for loader in (module.train_dataloader(), module.val_dataloader()):
        samples = [sample for batch in loader for sample in batch]
        for sample in samples:
            number = int(sample.key[1:])
            wanted = Region(number, 0, 7, 7) if sample.image is not None else None
            assert sample.predicted == wanted and (sample.image is None) == (sample.split == "train" and number == 1)
    rows = [row for (row,) in SampleCollate(load_vlm(tiny_llava).prepare)(samples)["questions"]]
    assert [row["predicted"] for row in rows if row["key"] == "s0003"][0] == [3, 0, 7, 7]
    assert all(row["predicted"] != row["region"] for row in rows)


def test_without_the_option_there_is_none(folders: dict[str, str], tiny_llava: str) -> None:
    module = data(folders, None)
    module.setup("fit")
    (batch,) = module.train_dataloader()
    assert {sample.predicted for sample in batch} == {None}
    assert "predicted" not in SampleCollate(load_vlm(tiny_llava).prepare)(batch)["questions"][0][0]


def test_a_sample_without_a_region_is_named(folders: dict[str, str], tmp_path: Path) -> None:
    module = data(folders, write(tmp_path / "regions.jsonl", [0, 4]))
    with pytest.raises(ValueError, match=r"'s0002' and 1 others of .*train; make them with `cropl predict"):
        module.setup("fit")
    left_out = data(folders, write(tmp_path / "regions.jsonl", [0, 3, 4]), weights={"left out": 0})
    left_out.setup("fit")
    assert left_out.predicted["train"].region_N4[2].tolist() == [255] * 4


def test_folders_may_have_files_of_their_own(folders: dict[str, str], tmp_path: Path) -> None:
    files = {folders["val_dir"]: write(tmp_path / "val.jsonl", [3, 4], shift=2)}
    module = data(folders, files)
    module.setup("fit")
    assert {sample.predicted for batch in module.train_dataloader() for sample in batch} == {None}
    found = {sample.key: sample.predicted for batch in module.val_dataloader() for sample in batch}
    assert found == {"s0003": Region(3, 2, 7, 7), "s0004": Region(4, 2, 7, 7)}
    with pytest.raises(ValueError, match="names 'elsewhere'; the folders of shards are .*train, .*val"):
        data(folders, {"elsewhere": "x.jsonl"}).setup("fit")


def test_other_regions_are_other_data(folders: dict[str, str], tmp_path: Path) -> None:
    saved = data(folders, write(tmp_path / "regions.jsonl", [0, 2, 3, 4]))
    saved.setup("fit")
    state = saved.state_dict()
    same = data(folders, str(tmp_path / "regions.jsonl"))
    same.setup("fit")
    same.load_state_dict(state)
    for regions in (None, write(tmp_path / "others.jsonl", [0, 2, 3, 4], shift=1)):
        other = data(folders, regions)
        other.setup("fit")
        with pytest.raises(ValueError, match="does not fit the data .regions: "):
            other.load_state_dict(state)
    plain = data(folders, None)
    plain.setup("fit")
    earlier = {name: value for name, value in plain.state_dict().items() if name != "regions"}
    plain.load_state_dict(earlier)  # a checkpoint of a version without the option


@pytest.mark.parametrize(
    "line",
    [
        "not json", '{"key": "a"}', '{"key": "a", "region": [0, 0, 8, 7]}', '{"key": "a", "region": [5, 0, 4, 7]}',
        '{"key": 3, "region": [0, 0, 7, 7]}', '{"key": "first", "region": [0, 0, 7, 7]}', "[1]", "3",
        '{"key": "a", "region": [0, 0, 7.5, 7]}', '{"key": "a", "region": null}', "[" * 100000,
        '{"region": [0, 0, 7, 7]}', '{"image": 3, "region": [0, 0, 7, 7]}', '{"key": "\udcff", "region": [0, 0, 7, 7]}',
    ],
)  # fmt: skip
def test_a_damaged_line_is_named_whoever_reads_it(tmp_path: Path, line: str) -> None:
    path = tmp_path / "regions.jsonl"
    whole = '{"key": "first", "region": [0, 0, 7, 7]}\n' + line + "\n"
    path.write_text(whole, encoding="utf-8", errors="surrogateescape")
    for read in (read_regions, FromFile):
        with pytest.raises(ValueError, match="regions.jsonl: line 2 is no region of a sample"):
            read(path)


def test_what_a_file_may_hold_it_may_hold_everywhere(folders: dict[str, str], tmp_path: Path) -> None:
    """Empty lines, lines of images, a question with a line separator, and the mark at a file's start."""
    path = tmp_path / "regions.jsonl"
    write(path, [0, 2, 3, 4])
    asked = json.dumps({"image": "a/b.jpg", "question": "one\u2028two?", "region": [1, 2, 3, 4]}, ensure_ascii=False)
    path.write_text(f"\ufeff{path.read_text()}\n \n{asked}\n", encoding="utf-8")
    module = data(folders, str(path))
    module.setup("fit")
    assert module.predicted["train"].region_N4[3].tolist() == [3, 0, 7, 7]
    assert read_regions(path)["question", "b.jpg", "one\u2028two?"] == (1, 2, 3, 4)
    sample = replace(make_sample(9), key="x", image=Path("c/b.jpg"), question="one\u2028two?")
    assert FromFile(path)([], [], [sample]) == [Region(1, 2, 3, 4)]


def test_a_missing_file_is_told_with_the_command(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="cannot be read .no such file.*cropl predict"):
        read_regions(tmp_path / "none.jsonl")


def test_a_line_of_an_answer_that_failed_has_no_region(tmp_path: Path) -> None:
    path = tmp_path / "answers.jsonl"
    failed = {"key": "b", "image": "b.jpg", "region": None, "error": "not an image"}
    path.write_text(json.dumps({"key": "a", "region": [0, 1, 2, 3]}) + "\n" + json.dumps(failed) + "\n")
    assert read_regions(path) == {("key", "a"): (0, 1, 2, 3)}
    path.write_text(json.dumps({**failed, "error": None}) + "\n")
    with pytest.raises(ValueError, match="line 1 is no region of a sample"):
        read_regions(path)
