"""cropl calibrate [-c RECIPE] [--key value ...]

Fits how large a localizer's regions have to be: the level of its read-out `expected_recall` with which at least 90 %
of the true region is found for 90 % of the questions, by split-conformal calibration. Checks that on fresh questions,
beside the other read-outs. Writes calibration.json and calibration.png into --out and prints the table.

  cropl calibrate                                        the testbed's localizer on the testbed
  cropl calibrate --share 0.95 --write runs/localizer    a copy of the checkpoint that reads its regions like this
  cropl calibrate --localizer ./localizer --data.calibrate ./shards/val --data.check ./shards/test
  cropl calibrate -c evaluate/localizer_resolution       the same at several input sizes

Keys, with their defaults:
  localizer        testbed:localizer   folder or hub name
  data.calibrate   testbed:val:300     questions to calibrate on: testbed:SPLIT:COUNT, or a folder of shards[:COUNT]
  data.check       testbed:test:300    fresh questions to check on
  share            0.9                 of the questions, for which
  recall           0.9                 of the true region's blocks are to be found
  max_pixels       null                area of the localizer's input, null the checkpoint's own; several in a list
  batch_size       16
  out              runs/calibrate
  write            null                folder for the copy of the checkpoint
  device, dtype    null                the model's own

One question is taken of each picture, at random: those about one picture are not exchangeable with those about others.
"""

from __future__ import annotations

import shutil
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cropl import recipe
from cropl.commands.arguments import check_writable
from cropl.commands.printing import table_console
from cropl.errors import UsageError, check_keys

if TYPE_CHECKING:
    from cropl.data.sample import Sample

DATA = {"calibrate": "testbed:val:300", "check": "testbed:test:300"}


@dataclass
class Options:
    """The keys of the command."""

    localizer: str = "testbed:localizer"
    data: dict[str, str] = field(default_factory=dict)
    share: float = 0.9
    recall: float = 0.9
    max_pixels: int | list[int] | None = None
    batch_size: int = 16
    out: str = "runs/calibrate"
    write: str | None = None
    device: str | None = None
    dtype: str | None = None


def run(args: Sequence[str]) -> int:
    """The command; returns its exit code."""
    if "-h" in args or "--help" in args:
        print(__doc__)
        return 0
    recipes, overrides = recipe.parse_flags(args)
    options = read(recipe.load(recipes, overrides))
    out = Path(options.out)
    check_writable(out)
    if options.write is not None and Path(options.write).exists():
        raise UsageError(f"--write {options.write} exists; give a new folder for the copy of the checkpoint")

    from cropl.commands.models import open_localizer
    from cropl.evaluation import calibration_report as report
    from cropl.evaluation.calibrate import Goal, calibrate
    from cropl.evaluation.files import write_json
    from cropl.evaluation.progress import Stages

    goal = Goal(options.share, options.recall)
    calibration, fresh = (_questions(name, options.data[name]) for name in DATA)
    goal.rank(len(calibration))
    sizes = options.max_pixels if isinstance(options.max_pixels, list) else [options.max_pixels]
    found = []
    with Stages() as stages:
        for size in sizes:
            localizer = open_localizer(options.localizer, options.device, options.dtype, size)
            at = "" if size is None else f" at {size:,} pixels"
            stages.stage(f"locating{at}", len(calibration) + len(fresh))
            result = calibrate(localizer, calibration, fresh, goal, options.batch_size, stages.advance)
            found.append({"max_pixels": localizer.vlm.max_pixels, **result})
    told = {
        "localizer": options.localizer,
        "data": options.data,
        "guarantee": report.guarantee(found[0]),
        "runs": found,
    }
    write_json(out / "calibration.json", told)
    report.draw(found, out / "calibration.png")
    console = table_console(170)
    console.print()
    console.print(report.table(found))
    console.print(f"\n{report.guarantee(found[0])}", highlight=False)
    for one in found:
        if kinds := report.by_kind(one):
            at = f" at {one['max_pixels']:,} pixels" if len(found) > 1 else ""
            console.print(f"by kind of question{at}: {kinds}", highlight=False)
    console.print(f"results: {out / 'calibration.json'}, {out / 'calibration.png'}", soft_wrap=True, highlight=False)
    if options.write is not None:
        _write(options.localizer, found[0]["readout"], localizer.vlm.max_pixels, Path(options.write))
        console.print(f"localizer: {options.write}, read with {found[0]['readout']}", soft_wrap=True, highlight=False)
    return 0


def read(given: Mapping[str, Any]) -> Options:
    """The options of a recipe; UsageError says what is wrong with them."""
    check_keys(dict(given), [one.name for one in fields(Options)], "calibrate")
    data = given.get("data") or {}
    if not isinstance(data, Mapping):
        raise UsageError(f"calibrate: data {data!r}: give data.calibrate and data.check")
    check_keys(dict(data), list(DATA), "calibrate: data")
    options = Options(**{**given, "data": {**DATA, **data}})
    sizes = options.max_pixels if isinstance(options.max_pixels, list) else [options.max_pixels]
    for key, value in (*(("max_pixels", size) for size in sizes), ("batch_size", options.batch_size)):
        if (value is not None or key == "batch_size") and (type(value) is not int or value < 1):
            raise UsageError(f"calibrate: {key} {value!r}: give a positive integer")
    if not sizes or (len(sizes) > 1 and options.write is not None):
        raise UsageError("calibrate: give at least one max_pixels, and one alone with --write: a level is for one size")
    for key in ("localizer", "out"):
        if not isinstance(getattr(options, key), str) or not getattr(options, key):
            raise UsageError(f"calibrate: {key} {getattr(options, key)!r}: give a name")
    return options


def source(key: str, name: Any) -> tuple[str, int | None]:
    """Where the questions of `data.key` come from, `testbed:SPLIT` or a folder of shards, and at most how many.

    Raises:
        UsageError: it names nothing.
    """
    name = str(name)
    head, _, count = name.rpartition(":")
    limit = int(count) if head and count.isdigit() else None
    if limit == 0:
        raise UsageError(f"calibrate: data.{key} {name}: give at least one question")
    if not name.startswith("testbed:"):
        return name if limit is None else head, limit
    if limit is None or head.removeprefix("testbed:") not in ("train", "val", "test"):
        raise UsageError(f"calibrate: data.{key} {name!r}: write testbed:SPLIT:COUNT, such as testbed:val:300")
    return head, limit


def _questions(key: str, name: Any) -> list[Sample]:
    """Questions with evidence, in an order that their keys decide, and only the first about each picture."""
    from cropl.evaluation.pictures import image_key

    where, limit = source(key, name)
    split = where.removeprefix("testbed:")
    samples: Iterable[Sample] = _of_shards(where) if split == where else _of_testbed(split, int(limit or 0))
    chosen: dict[str, Sample] = {}
    for sample in samples:
        chosen.setdefault(image_key(sample), sample)
        if len(chosen) == limit:
            break
    if not chosen:
        raise UsageError(f"calibrate: data.{key} {name}: no question has evidence boxes, so no region is known")
    return list(chosen.values())


def _of_testbed(split: str, count: int) -> list[Sample]:
    from cropl.testbed.samples import samples

    made: list[Sample] = []
    for start in range(count):
        some = samples(split, 6, start)  # at most one of each of six kinds; what is left is about the next scene
        made += [sample for sample in some if sample.image is some[0].image]
    return sorted(made, key=lambda sample: _draw(sample.key))


def _of_shards(folder: str) -> Iterator[Sample]:
    from cropl.data.shards import ShardReader

    reader = ShardReader(folder)
    boxed = [int(index) for index in reader.boxes_N.nonzero()[0]]
    for index in sorted(boxed, key=lambda index: _draw(reader.key(index))):
        yield reader.encoded(index)


def _draw(key: str) -> tuple[int, str]:
    return zlib.crc32(key.encode()), key


def _write(name: str, readout: str, max_pixels: int | None, target: Path) -> None:
    """A copy of a checkpoint whose config asks for the read-out at that input size; complete or not there."""
    import json

    from huggingface_hub import snapshot_download

    from cropl.commands.models import checkpoint
    from cropl.data.aside import written_aside
    from cropl.evaluation.files import write_json
    from cropl.models.export import MAX_PIXELS_KEY
    from cropl.models.region_distribution import COVERAGE_KEY, READOUT_KEY

    folder = Path(checkpoint(name))
    if not folder.is_dir():
        folder = Path(snapshot_download(name, local_files_only=True))
    with written_aside(target) as aside:
        shutil.copytree(folder, aside, dirs_exist_ok=True)
        config = json.loads((aside / "config.json").read_text(encoding="utf-8"))
        config.pop(COVERAGE_KEY, None)
        write_json(aside / "config.json", config | {READOUT_KEY: readout, MAX_PIXELS_KEY: max_pixels})
