"""What goes wrong with a build: keys that meet, odd rows, too many bad ones, folders that are not there, kills."""

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from cropl.cli import main
from cropl.data import chunks
from cropl.data.build import REJECTED, REPORT, build
from cropl.data.images import MAX_ASPECT, MAX_PIXELS
from cropl.data.labelling import Labelling
from cropl.data.manifest import Manifest
from cropl.data.readers.base import Annotation, BadRow, Reader, Rejected
from cropl.data.recipe import DataRecipe
from cropl.data.selection import Candidate, Selection, Source, select
from cropl.data.shards import ShardReader
from cropl.errors import RunError
from tests.data.test_build import Rows, chosen, folder, reader, row

__all__ = ["folder"]  # the fixture


def rejected(out: Path) -> list[Rejected]:
    return [Rejected(**json.loads(line)) for line in (out / REJECTED).read_text(encoding="utf-8").splitlines()]


def test_sources_that_are_spelled_alike_share_their_numbers(folder: Path) -> None:
    long = "x" * 40
    sources = ["a b", "a_b", "a-b", long + "y", long + "z"]
    selection = chosen(folder, [row(i, source) for i, source in enumerate(sources)], shuffle=False)
    keys = [candidate.key for candidate in selection.candidates]
    assert keys == [f"p-a-b-000000{i}" for i in (1, 2, 3)] + [f"p-{long}-000000{i}" for i in (1, 2)]
    build(folder / "out", "p", selection, Labelling())
    assert main(["shards", "verify", str(folder / "out")]) == 0 and len(ShardReader(folder / "out")) == 5


def test_a_key_that_comes_twice_is_refused_before_anything_is_written(folder: Path) -> None:
    selection = chosen(folder, [row(0), row(1)])
    twice = Selection([Candidate("k", one.images, one.annotation) for one in selection.candidates], [], selection.read)
    with pytest.raises(ValueError, match="sample key 'k' comes more than once"):
        build(folder / "out", "p", twice, Labelling(), samples_per_shard=1)
    assert not (folder / "out").exists()


def test_images_are_measured_against_what_was_chosen(folder: Path) -> None:
    rows = [row(i, image="0.png" if i < 700 else "none.png") for i in range(1000)]
    selection = select([Source(reader(folder, rows), 12)], "p")
    lost = sum(candidate.annotation.image == "none.png" for candidate in selection.candidates)
    assert 0 < lost < 10  # under 1 % of what was read
    with pytest.raises(RunError, match=rf"{lost} of 12 rows .* \(the image is missing: {lost}\)"):
        build(folder / "out", "p", selection, Labelling())


def test_rows_are_measured_against_what_was_read(folder: Path) -> None:
    rows: list[Any] = [row(i) for i in range(99)] + ["{\n"]
    selection = select([Source(reader(folder, rows), 2)], "p")
    assert len(build(folder / "out", "p", selection, Labelling())) == 2
    with pytest.raises(RunError, match="2 of 101 rows"):
        build(folder / "more", "p", select([Source(reader(folder, [*rows, "{\n"]), 2)], "p"), Labelling())


HALF = "half \ud83d of a character"


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"question": HALF}, "text with half a character"),
        ({"answer": HALF}, "text with half a character"),
        ({"source": HALF}, "text with half a character"),
        ({"id": HALF}, "text with half a character"),
        ({"image": HALF}, "text with half a character"),
        ({"image": "x" * 300}, "the image is missing"),
        ({"image": f"{'x' * 300}/0.png"}, "the image is missing"),
        ({"boxes": [[1, 1, 10**400, 4]]}, "malformed row"),
    ],
)
def test_odd_rows_do_not_stop_a_build(folder: Path, change: dict[str, Any], reason: str) -> None:
    selection = chosen(folder, [row(0), row(1, **change), row(2)])
    assert len(build(folder / "out", "p", selection, Labelling(), max_bad=0.5)) == 2
    assert [one.reason for one in rejected(folder / "out")] == [reason]


def test_a_line_that_is_nested_too_deeply_is_not_json(folder: Path) -> None:
    selection = chosen(folder, [row(0), "[" * 100_000 + "\n"])
    assert [one.reason for one in selection.rejected] == ["not JSON"] and len(selection.candidates) == 1


def test_followups_are_looked_at_too(folder: Path) -> None:
    class Talks(Rows):
        def parse(self, row: Any, number: int) -> Iterator[Annotation]:
            yield Annotation(str(number), "q", ("a",), "s", "train", followups=(("q", "a"), ("q", HALF)))

    (row_,) = Talks(reader(folder, [row(0)]).file)
    assert isinstance(row_, Rejected) and row_.reason == "text with half a character" and "\\ud83d" in row_.detail


def test_half_a_character_in_a_detail_can_be_listed(folder: Path) -> None:
    class Refusing(Rows):
        def parse(self, row: Any, number: int) -> Iterator[Annotation]:
            if row["id"] == 1:
                raise BadRow("é is no answer", HALF)
            yield from super().parse(row, number)

    file = reader(folder, [row(0), row(1)]).file
    build(folder / "out", "p", select([Source(Refusing(file, folder))], "p"), Labelling(), max_bad=0.5)
    assert rejected(folder / "out") == [Rejected("rows.jsonl, row 2", "é is no answer", HALF)]


@pytest.mark.parametrize(
    ("size", "reason"),
    [
        ([6_000_000_000, 2], "the stated size is too large"),
        ([8000, MAX_PIXELS // 8000 + 1], "the stated size is too large"),
        ([MAX_ASPECT * 10 + 1, 10], "the stated size is too long"),
        ([10, MAX_ASPECT * 10 + 1], "the stated size is too long"),
    ],
)
def test_placeholders_are_no_larger_than_images(folder: Path, size: list[int], reason: str) -> None:
    selection = chosen(folder, [row(0, size=[MAX_ASPECT * 10, 10]), row(1, size=size)])
    assert len(build(folder / "out", "p", selection, Labelling(placeholder=True), max_bad=0.5)) == 1
    assert [one.reason for one in rejected(folder / "out")] == [reason]
    assert len(list(ShardReader(folder / "out"))) == 1


@pytest.mark.parametrize("far", [1e9, 10**30, 1e300])
def test_a_box_that_ends_far_outside_is_drawn_at_once(folder: Path, far: float) -> None:
    rows = [row(0, size=[320, 200], boxes=[[40, 30, far, far]]), row(1, size=[320, 200], boxes=[[40, 30, 400, 400]])]
    started = time.monotonic()
    build(folder / "out", "p", chosen(folder, rows), Labelling(placeholder=True))
    assert time.monotonic() - started < 5
    first, second = (sample.picture().tobytes() for sample in ShardReader(folder / "out"))
    assert first == second


@pytest.mark.parametrize("workers", [0, 2])
def test_a_build_stops_when_too_many_are_bad_and_goes_on_later(
    folder: Path, workers: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    late = [*range(3, 6), *range(60, 200)]
    rows = [row(i, image=f"late{i}.png" if i in late else "0.png") for i in range(200)]
    selection, done = chosen(folder, rows, shuffle=False), list[int]()
    with pytest.raises(RunError, match=r"of 200 rows cannot .* \(the image is missing: \d+\)"):
        build(folder / "out", "p", selection, Labelling(), 2, 0.05, workers, progress=done.append)
    assert sum(done) < 120  # of 200: the limit is passed at the 68th in order
    records = {path.stem for path in (folder / "out" / ".build").glob("0*.json")}
    assert {f"{number:06d}" for number in (0, *range(3, 30))} <= records
    assert not records & {f"{candidate // 2:06d}" for candidate in late}  # they are looked at again
    for i in late:
        (folder / f"late{i}.png").write_bytes((folder / "0.png").read_bytes())
    made, write = list[Path](), chunks.write_chunk
    monkeypatch.setattr(chunks, "write_chunk", lambda path, *rest: made.append(path) or write(path, *rest))
    assert len(build(folder / "out", "p", selection, Labelling(), 2, 0.05)) == 200
    assert len(made) == 100 - len(records)


def test_a_plan_that_was_cut_off_is_made_anew(folder: Path) -> None:
    records = folder / "out" / ".build"
    records.mkdir(parents=True)
    (records / "plan.json").write_text("")
    assert len(build(folder / "out", "p", chosen(folder, [row(0)]), Labelling())) == 1
    for other in ("", "[]"):
        records = folder / f"other{other}" / ".build"
        records.mkdir(parents=True)
        (records / "plan.json").write_text(other)
        (records / "000000.json").write_text("{}")
        with pytest.raises(ValueError, match="holds a part of another build"):
            build(records.parent, "p", chosen(folder, [row(0)]), Labelling())


def test_a_plan_is_there_whole_or_not_at_all(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def killed(*_: Any) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("cropl.data.files.os.replace", killed)
        build(folder / "out", "p", chosen(folder, [row(0)]), Labelling())
    assert not (folder / "out" / ".build" / "plan.json").exists()
    assert len(build(folder / "out", "p", chosen(folder, [row(0)]), Labelling())) == 1


def test_what_a_killed_build_left_beside_a_whole_set_is_removed(folder: Path) -> None:
    made = build(folder / "out", "p", chosen(folder, [row(0)]), Labelling())
    left = folder / "out" / ".build"
    left.mkdir()
    (left / "000000.json").write_text("{}")
    assert build(folder / "out", "p", chosen(folder, [row(0)]), Labelling()) == made
    assert not left.exists() and (folder / "out" / REPORT).exists()


def missing(source: Reader, **options: Any) -> list[str]:
    return DataRecipe("out", [None], **options).missing([Source(source)])


def test_folders_of_images_that_are_not_there_are_told_before_a_build(folder: Path) -> None:
    (folder / "there").mkdir()
    (folder / "there" / "0.png").write_bytes(b"")
    rows = [row(i, source="lost", image=f"lost/deep/{i % 3}.png") for i in range(6)]
    rows += [row(i, image=f"there/{i % 40}.png") for i in range(80)] + [row(7, image=None)]
    source = reader(folder, rows)
    assert missing(source) == [f"{folder}/lost: no such folder of images (rows.jsonl names 3 images in it)"]
    assert missing(source, placeholder=True) == missing(source, max_bad=0.1) == missing(source, caps={"lost": 0}) == []
    (folder / "lost" / "deep").mkdir(parents=True)
    lost = f"{folder}/lost: none of the first 3 images that rows.jsonl names in it is there ('lost/deep/0.png')"
    assert missing(source) == [lost]
    (folder / "lost" / "deep" / "2.png").write_bytes(b"")
    assert missing(source) == []


def test_images_without_folders_are_looked_for(folder: Path) -> None:
    assert missing(reader(folder, [row(i) for i in range(50)])) == []
    rows = [row(i, image=f"x{i}.png") for i in range(21)]
    lost = f"{folder}: none of the first 20 images that rows.jsonl names in it is there ('x0.png')"
    assert missing(reader(folder, rows)) == [lost]
    (folder / "x20.png").write_bytes(b"")  # the 21st is not looked at
    assert missing(reader(folder, rows)) == [lost]
    (folder / "x19.png").write_bytes(b"")
    assert missing(reader(folder, rows)) == []
    assert missing(reader(folder, [row(0, image="x" * 300), row(1, image="../0.png"), row(2, image="/x/0.png")])) != []


def test_only_the_first_rows_are_read_for_that(folder: Path) -> None:
    read = list[int]()

    class Counting(Rows):
        def rows(self) -> Iterator[Any]:
            for number in range(100_000):
                read.append(number)
                yield row(number)

    class Whole(Counting):
        streams: ClassVar[bool] = False

    file = reader(folder, []).file
    assert missing(Counting(file, folder)) == [] and 1000 <= len(read) <= 5000
    read.clear()
    assert missing(Whole(file, folder)) == [] and not read


def test_a_file_of_something_else_is_told_before_a_build(folder: Path) -> None:
    (found,) = missing(reader(folder, []))
    assert found == f"{folder}/rows.jsonl: the file is empty"


def test_the_command_says_which_images_are_missing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = {"answer": "x", "width": 640, "height": 480, "bboxs": [[9, 9, 99, 99]], "dataset": "vsr", "split": "train"}
    (tmp_path / "rows.jsonl").write_text(json.dumps({"question": "Where?", "image": "1.jpg", **record}))
    args = f"file: {tmp_path}/rows.jsonl, images: {tmp_path}"
    given = f"out: {tmp_path}/out\nsources: [{{class_path: cropl.data.readers.viscot_metadata.VisCotMetadata, "
    (tmp_path / "given.yaml").write_text(f"{given}init_args: {{{args}}}}}]\n")
    assert main(["shards", "build", "-c", str(tmp_path / "given.yaml")]) == 2
    assert f"{tmp_path}/cot: no such folder of images" in capsys.readouterr().err and not (tmp_path / "out").exists()
    assert main(["shards", "build", "-c", str(tmp_path / "given.yaml"), "--placeholder", "--workers", "0"]) == 0
    assert len(Manifest.read(tmp_path / "out")) == 1


@pytest.mark.parametrize("name", ["thesis.txt", "rejected.jsonl", "build.json", "x.tar"])
def test_somebody_elses_folder_is_left_alone(folder: Path, name: str) -> None:
    out = folder / "out"
    out.mkdir()
    (out / name).write_text("mine")
    with pytest.raises(ValueError, match="already holds shards|holds other files"):
        build(out, "p", chosen(folder, [row(0)]), Labelling())
    assert [path.name for path in out.iterdir()] == [name] and (out / name).read_text() == "mine"


def test_a_build_that_wrote_nothing_makes_room_for_another(folder: Path) -> None:
    rows = [row(number, image="none.png") for number in range(3)]
    with pytest.raises(RunError, match="the image is missing: 3"):
        build(folder / "out", "p", chosen(folder, rows), Labelling())
    assert len(build(folder / "out", "p", chosen(folder, rows), Labelling(placeholder=True))) == 3
