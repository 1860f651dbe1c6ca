"""Building shards: what is chosen, how it is labelled, and that a killed build continues to the same bytes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from cropl.cli import main
from cropl.data.build import REJECTED, REPORT, build
from cropl.data.labelling import PLACEHOLDER_SIZE, Labelling
from cropl.data.manifest import Manifest
from cropl.data.readers.base import Annotation, BadRow, Reader, Rejected, pixel_boxes
from cropl.data.selection import Candidate, Selection, Source, select
from cropl.data.shards import ShardReader
from cropl.errors import RunError
from cropl.grid import GRID


class Rows(Reader):
    """A reader of rows that are annotations already."""

    def parse(self, row: Any, number: int) -> Iterable[Annotation]:
        yield Annotation(
            id=str(row["id"]),
            question=row["question"],
            answers=(row["answer"],),
            source=row["source"],
            split="train",
            image=row.get("image"),
            boxes=pixel_boxes(row["boxes"]) if "boxes" in row else (),
            size=tuple(row["size"]) if "size" in row else None,
        )


def row(number: int, source: str = "a", **changes: Any) -> dict[str, Any]:
    made = {
        "id": number,
        "question": f"What is {number}?",
        "answer": str(number),
        "source": source,
        "image": f"{number % 3}.png",
        "boxes": [[1, 1, 5, 4]],
    }
    return {name: value for name, value in {**made, **changes}.items() if value is not None}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for number in range(3):
        pixels = np.full((6 + number, 8, 3), 40 * number, dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
    return tmp_path


def reader(folder: Path, rows: list[Any], name: str = "rows.jsonl") -> Reader:
    path = folder / name
    path.write_text("".join(text if isinstance(text, str) else json.dumps(text) + "\n" for text in rows))
    return Rows(path, folder)


def chosen(folder: Path, rows: list[Any], **options: Any) -> Selection:
    return select([Source(reader(folder, rows))], "p", **options)


def test_a_build_holds_every_usable_row(folder: Path) -> None:
    rows = [row(i, "ab"[i % 2]) for i in range(10)] + [row(10, image=None, boxes=None)]
    manifest = build(folder / "out", "p", chosen(folder, rows), Labelling(), samples_per_shard=4, max_bad=0)
    assert [len(shard.entries) for shard in manifest.shards] == [4, 4, 3]
    samples = sorted((s for s in ShardReader(folder / "out", verify="full")), key=lambda s: int(s.id))
    assert [s.id for s in samples] == [str(i) for i in range(11)]
    assert samples[3].key == "p-b-0000002" and samples[3].boxes == [(1, 1, 5, 4)] and samples[3].width == 8
    assert samples[10].image is None and samples[10].width == 0
    raw = ShardReader(folder / "out").record(0)
    assert raw["png"] == (folder / f"{int(json.loads(raw['json'])['id']) % 3}.png").read_bytes()  # not encoded again
    report = json.loads((folder / "out" / REPORT).read_text())
    assert report["sources"]["a"] == {"read": 6, "chosen": 6, "written": 6} and report["rejected"] == {}
    assert not (folder / "out" / ".build").exists()


@given(st.lists(st.tuples(*[st.floats(-50, 150)] * 4), min_size=1, max_size=4))
def test_regions_match_an_independent_computation(boxes: list[tuple[float, float, float, float]]) -> None:
    size = (100, 60)
    annotation = Annotation("1", "q", ("a",), "s", "train", "x.png", tuple(boxes), size)
    inside = [
        (x0, y0, x1, y1)
        for x0, y0, x1, y1 in (
            (
                max(min(b[0], b[2]), 0.0),
                max(min(b[1], b[3]), 0.0),
                min(max(b[0], b[2]), 100.0),
                min(max(b[1], b[3]), 60.0),
            )
            for b in boxes
        )
        if x0 < x1 and y0 < y1
    ]
    candidate, repairs = Candidate("k", None, annotation), Counter[str]()
    if not inside:
        with pytest.raises(BadRow, match="no box has an area"):
            Labelling(placeholder=True).sample(candidate, repairs)
        return
    sample = Labelling(placeholder=True).sample(candidate, repairs)
    # A block belongs to the region if it lies between the outermost edges of all boxes.
    x = [i for i in range(GRID) if min(b[0] for b in inside) < (i + 1) * 12.5 and max(b[2] for b in inside) > i * 12.5]
    y = [i for i in range(GRID) if min(b[1] for b in inside) < (i + 1) * 7.5 and max(b[3] for b in inside) > i * 7.5]
    assert sample.region.as_tuple() == (min(x), min(y), max(x), max(y))
    assert isinstance(sample.image, Image.Image) and sample.image.size == size
    touched = sum(
        not (0 <= b[0] <= b[2] <= 100 and 0 <= b[1] <= b[3] <= 60) or b[0] == b[2] or b[1] == b[3] for b in boxes
    )
    assert bool(repairs) == bool(touched)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"image": "none.png"}, "the image is missing"),
        ({"image": "../0.png"}, "the image path leaves the folder"),
        ({"image": "/etc/passwd"}, "the image path leaves the folder"),
        ({"image": "rows.jsonl"}, "the image cannot be used"),
        ({"size": [8, 9]}, "the image has another size than stated"),
        ({"boxes": [[8, 0, 20, 4]]}, "no box has an area inside the image"),
        ({"image": None}, "boxes without an image"),
        ({"boxes": []}, "no box"),
        ({"boxes": [[0.1, 0.1, 0.5, 0.5]]}, "boxes are normalised, pixels are expected"),
        ({"boxes": [[1, 2, 3]]}, "a box is not four numbers"),
        ({"boxes": [[1, 2, 3, "4"]]}, "a box is not four numbers"),
        ({"question": None}, "key 'question' is missing"),
    ],
)
def test_bad_rows_are_counted_and_listed(folder: Path, change: dict[str, Any], reason: str) -> None:
    rows = [row(0), row(1, **change), row(2)]
    with pytest.raises(RunError, match=rf"1 of 3 rows .* \({reason}: 1\); .*{REJECTED}"):
        build(folder / "out", "p", chosen(folder, rows), Labelling())
    manifest = build(folder / "out", "p", chosen(folder, rows), Labelling(), max_bad=0.5)
    assert len(manifest) == 2
    listed = [Rejected(**json.loads(line)) for line in (folder / "out" / REJECTED).read_text().splitlines()]
    assert [one.reason for one in listed] == [reason]
    assert json.loads((folder / "out" / REPORT).read_text())["rejected"] == {reason: 1}


def test_a_row_that_is_not_json_is_told_with_its_number(folder: Path) -> None:
    selection = chosen(folder, [row(0), "{\n", row(2)])
    assert [(one.where, one.reason) for one in selection.rejected] == [("rows.jsonl, row 2", "not JSON")]


def test_an_image_that_was_added_is_found_by_the_next_run(folder: Path) -> None:
    rows = [row(0), row(1, image="later.png"), row(2)]
    with pytest.raises(RunError, match="the image is missing: 1"):
        build(folder / "out", "p", chosen(folder, rows), Labelling(), samples_per_shard=1)
    (folder / "later.png").write_bytes((folder / "0.png").read_bytes())
    assert len(build(folder / "out", "p", chosen(folder, rows), Labelling(), samples_per_shard=1)) == 3


def test_caps_subsets_and_order_follow_the_seed(folder: Path) -> None:
    rows = [row(i, "ab"[i % 2]) for i in range(40)]
    first, same, other = (chosen(folder, rows, caps={"a": 5}, seed=seed) for seed in (1, 1, 2))
    assert first.counts == {"a": 5, "b": 20} and first.read == {"a": 20, "b": 20}
    keys, again, others = ([c.key for c in one.candidates] for one in (first, same, other))
    assert keys == again != others and set(keys) != set(others) and keys != sorted(keys)
    plain = chosen(folder, rows, shuffle=False)
    assert [c.annotation.id for c in plain.candidates] == [str(i) for i in range(40)]
    taken = select([Source(reader(folder, rows), 7)], "p", shuffle=False)
    ids = [int(c.annotation.id) for c in taken.candidates]
    assert len(ids) == 7 and ids == sorted(ids) and ids != list(range(7))
    with pytest.raises(ValueError, match="did you mean"):
        chosen(folder, rows, caps={"aa": 1})


def test_resizing_takes_the_boxes_along(folder: Path) -> None:
    Image.new("RGB", (400, 200), "white").save(folder / "0.png")
    rows = [row(0, boxes=[[100, 50, 200, 100]], size=[400, 200])]
    build(folder / "out", "p", chosen(folder, rows), Labelling(resize=100))
    sample = ShardReader(folder / "out")[0]
    assert (sample.width, sample.height) == (100, 50) and sample.boxes == [(25, 12.5, 50, 25)]
    assert sample.region.as_tuple() == (2, 2, 3, 3)


def test_placeholders_have_the_right_size_and_the_box_drawn(folder: Path) -> None:
    rows = [row(0, size=[320, 200], boxes=[[40, 30, 160, 120]]), row(1, boxes=None)]
    build(folder / "out", "p", chosen(folder, rows), Labelling(placeholder=True))
    first, second = sorted(ShardReader(folder / "out"), key=lambda sample: sample.id)
    assert isinstance(first.image, Image.Image) and first.image.size == (320, 200)
    assert first.image.getpixel((40, 60)) == (210, 40, 40) != first.image.getpixel((100, 60))
    assert (second.width, second.height) == PLACEHOLDER_SIZE


def test_a_folder_of_something_else_is_left_alone(folder: Path) -> None:
    rows = [row(0), row(1)]
    made = build(folder / "out", "p", chosen(folder, rows), Labelling())
    assert build(folder / "out", "p", chosen(folder, rows), Labelling()).fingerprint == made.fingerprint
    with pytest.raises(ValueError, match="holds other shards"):
        build(folder / "out", "p", chosen(folder, rows[:1]), Labelling())
    (folder / "other").mkdir()
    (folder / "other" / "x.tar").write_bytes(b"")
    with pytest.raises(ValueError, match="already holds shards"):
        build(folder / "other", "p", chosen(folder, rows), Labelling())


RECIPE = """
out: {out}
sources:
  - class_path: cropl.data.readers.viscot_metadata.VisCotMetadata
    init_args: {{file: {file}}}
placeholder: true
samples_per_shard: 20
workers: 2
"""


def test_a_killed_build_continues_to_the_same_bytes(tmp_path: Path) -> None:
    record = {"answer": "x", "width": 640, "height": 480, "bboxs": [[9, 9, 99, 99]], "dataset": "vsr", "split": "train"}
    lines = [json.dumps({"question": f"Where is {i}?", "image": f"{i}.jpg", **record}) for i in range(600)]
    (tmp_path / "rows.jsonl").write_text("\n".join(lines))
    for out in ("whole", "killed"):
        recipe = RECIPE.format(out=tmp_path / out, file=tmp_path / "rows.jsonl")
        (tmp_path / f"{out}.yaml").write_text(f"prefix: p{recipe}")
    assert main(["shards", "build", "-c", str(tmp_path / "whole.yaml"), "--workers", "0"]) == 0
    command = [sys.executable, "-m", "cropl.cli", "shards", "build", "-c", str(tmp_path / "killed.yaml")]
    run = subprocess.Popen(command, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    records = tmp_path / "killed" / ".build"
    deadline = time.monotonic() + 120
    while len(list(records.glob("0*.json"))) < 3 and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(run.pid, signal.SIGKILL)
    run.wait()
    assert not (tmp_path / "killed" / "manifest.json").exists() and len(list(records.glob("0*.json"))) >= 3
    assert main(["shards", "build", "-c", str(tmp_path / "killed.yaml"), "--workers", "0"]) == 0
    assert Manifest.read(tmp_path / "killed").fingerprint == Manifest.read(tmp_path / "whole").fingerprint
    ShardReader(tmp_path / "killed", verify="full")
