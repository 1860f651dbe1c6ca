"""Every published file that is at hand, built as a user builds it: counts match, regions follow an independent rule."""

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cropl.cli import main
from cropl.data.sample import Sample
from cropl.data.shards import ShardReader
from tests.data.readers.conftest import published as published

Rows = list[dict[str, Any]]

BENCHMARK = "viscot/benchmark_{name}.json"
FILES = {
    "viscot_benchmark:cub": ("viscot/benchmark_cub.json", "data/viscot_benchmark", {"name": "cub"}),
    "viscot_benchmark:gqa": ("viscot/benchmark_gqa.json", "data/viscot_benchmark", {"name": "gqa"}),
    "viscot_benchmark:textvqa": ("viscot/benchmark_textvqa.json", "data/viscot_benchmark", {"name": "textvqa"}),
    "viscot_benchmark:vsr": ("viscot/benchmark_vsr.json", "data/viscot_benchmark", {"name": "vsr"}),
    "viscot_metadata:vsr": ("viscot/vsr_cot_train.jsonl", "data/viscot_metadata", {"name": "vsr"}),
    "viscot_metadata:sroie": ("viscot/sroie_cot_train.jsonl", "data/viscot_metadata", {"name": "sroie"}),
    "llava_mix": ("llava/llava_v1_5_mix1k.jsonl", "data/llava_instruct", {"name": "llava_v1_5_mix1k.jsonl"}),
    "llava_questions:gqa": (
        "llava/llava_gqa_testdev_balanced.jsonl",
        "data/llava_questions",
        {"file": "llava_gqa_testdev_balanced.jsonl", "source": "gqa"},
    ),
    "llava_questions:textvqa": (
        "llava/llava_textvqa_val_v051_ocr.jsonl",
        "data/llava_questions",
        {"file": "llava_textvqa_val_v051_ocr.jsonl", "source": "textvqa"},
    ),
    "llava_questions:pope": (
        "llava/llava_pope_test.jsonl",
        "data/llava_questions",
        {"file": "llava_pope_test.jsonl", "source": "pope"},
    ),
    "pope:adversarial": ("pope/coco_pope_adversarial.json", "data/pope", {"category": "adversarial"}),
    "pope:popular": ("pope/coco_pope_popular.json", "data/pope", {"category": "popular"}),
    "pope:random": ("pope/coco_pope_random.json", "data/pope", {"category": "random"}),
}
QUICK = {"viscot_benchmark:cub"}


def rows_of(path: Path) -> Rows:
    text = path.read_text(encoding="utf-8")
    return json.loads(text) if text.startswith("[") else [json.loads(line) for line in text.splitlines() if line]


def boxes_of(row: dict[str, Any]) -> np.ndarray | None:
    """The row's boxes (boxes, 4) in pixels, as its format publishes them."""
    if "bboxs" in row:
        return np.array(row["bboxs"], dtype=np.float64)
    images = row.get("image")
    if isinstance(images, list):
        (found,) = re.findall(r"###\[(.*)\]$", images[-1])
        return np.array([found.split(",")], dtype=np.float64)
    return None


def expected_region(boxes: np.ndarray, width: int, height: int) -> list[int]:
    """The outermost eighths of the image that the clipped boxes reach into, in plain floating point."""
    low, high = np.minimum(boxes[:, :2], boxes[:, 2:]), np.maximum(boxes[:, :2], boxes[:, 2:])
    size = np.array([width, height], dtype=np.float64)
    low, high = np.clip(low, 0, size), np.clip(high, 0, size)
    kept = (low < high).all(1)
    first = np.floor(low[kept] * 8 / size + 1e-9).min(0)
    last = np.ceil(high[kept] * 8 / size - 1e-9).max(0) - 1
    return [int(value) for value in (*first, *last)]


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in FILES])
def test_a_published_file_becomes_shards(name: str, published: Any, tmp_path: Path) -> None:
    file, recipe, variables = FILES[name]
    path = published(file)
    flags = [flag for key, value in variables.items() for flag in (f"--vars.{key}", value)]
    out = tmp_path / "out"
    command = ["shards", "build", "-c", recipe, "--vars.root", str(path.parent), *flags, "--placeholder"]
    assert main([*command, "--out", str(out), "--shuffle", "false", "--max_bad", "0", "--workers", "0"]) == 0
    rows, reader = rows_of(path), ShardReader(out, verify="full")
    assert len(reader) == len(rows)
    for number, row in enumerate(rows):  # not all at once: scans of many megapixels are among them
        check(row, reader.encoded(number))


def check(row: dict[str, Any], sample: Sample) -> None:
    boxes = boxes_of(row)
    if boxes is None:
        assert sample.boxes == [] and sample.region.as_tuple() == (0, 0, 7, 7)
    else:
        assert np.array_equal(np.array(sample.boxes), boxes)
        assert list(sample.region.as_tuple()) == expected_region(boxes, sample.width, sample.height)
    if "width" in row:
        assert (sample.width, sample.height) == (row["width"], row["height"])
    asked = row.get("question") or row.get("text") or row["conversations"][0]["value"]
    assert sample.question in asked
    if "text" in row:
        assert sample.asked.startswith(asked)


def test_the_photographs_keep_their_bytes(published: Any, tmp_path: Path) -> None:
    path = published("photos/photos.json")
    out = tmp_path / "out"
    assert main(["shards", "build", "-c", "data/photos", "--vars.root", str(path.parent), "--out", str(out)]) == 0
    reader = ShardReader(out, verify="full")
    photos = {photo["file"]: photo for photo in rows_of(path)}
    originals = {file: (path.parent / file).read_bytes() for file in photos}
    seen = set()
    for index in range(len(reader)):
        raw, sample = reader.record(index), reader[index]
        (file,) = (file for file, data in originals.items() if data == raw["jpg"])
        seen.add(file)
        photo = photos[file]
        assert (sample.width, sample.height) == (photo["width"], photo["height"])
        if sample.source == "photos":
            boxes = np.array([box["bbox"] for box in photo["boxes"] if box["category"] == sample.answers[0]])
            assert list(sample.region.as_tuple()) == expected_region(boxes, sample.width, sample.height)
    assert len(seen) == len(photos) == 25 and len(reader) == 100
