"""`cropl check` of suites and benchmarks: files, images, annotations, models, before a day on a GPU is spent."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from cropl import recipe
from cropl.cli import main
from cropl.testbed.official import FORMATS, export

SUITE = """
model: {model}
localizer: {localizer}
benchmarks: {benchmarks}
arms:
  - {{method: ilp, region_source: predicted, layer: 1, budget: 16}}
  - {{method: plc, region_source: predicted, model: {plc}}}
"""
Check = Callable[..., tuple[int, list[str]]]


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    return export(tmp_path_factory.mktemp("check") / "official", count=14)


@pytest.fixture
def check(capsys) -> Check:
    """Runs it; the exit code, and the lines of what it says."""

    def run(*args: str) -> tuple[int, list[str]]:
        code = main(["check", *args])
        told = capsys.readouterr()
        return code, (told.err if code == 2 else told.out).splitlines()

    return run


def unprepared(folder: Path, name: str, **changes: str) -> str:
    """A benchmark of the testbed that writes nothing by itself, as those of the real files."""
    text = recipe.find(f"testbed/benchmark/{name}").read_text()
    before, _, rest = text.partition("prepare:")
    text = before + rest[rest.index("data:") :]
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (folder / f"{name}.yaml").write_text(text)
    return str(folder / f"{name}.yaml")


@pytest.mark.parametrize("name", FORMATS)
def test_what_a_benchmark_needs(name, exported, tmp_path, check) -> None:
    path = unprepared(tmp_path, name)
    root = tmp_path / "root"
    code, told = check(path, "--vars.root", str(root))
    loaded = recipe.load([path], {"vars.root": str(root)})
    lost = [file for file in loaded["annotations"] if f"{path}: {file}: no such annotation file" in told]
    assert code == 1 and lost == loaded["annotations"]
    assert any("no such folder of images" in line for line in told) and len(told) == len(set(told))
    assert check(path, "--vars.root", str(exported)) == (0, [f"{path}: ready"])


def test_images_of_another_set_are_told(exported, tmp_path, check) -> None:
    path = unprepared(tmp_path, "pope")
    shutil.copytree(exported / "pope", tmp_path / "root/pope")
    for image in (tmp_path / "root/pope/val2014").iterdir():
        image.rename(image.with_name(f"other_{image.name}"))
    code, told = check(path, "--vars.root", str(tmp_path / "root"))
    assert code == 1 and len(told) == 3
    assert "val2014: none of the first" in told[0] and "coco_pope_adversarial.json names in it is there" in told[0]


def test_what_is_written_when_it_is_missing_is_not_missed(tmp_path, check, monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in recipe.names("testbed/benchmark/"):
        assert check(name) == (0, [f"{name}: ready"])
    assert list(tmp_path.iterdir()) == [], "nothing is written by a check"


def test_what_a_suite_needs(exported, tmp_path, check) -> None:
    path = tmp_path / "suite.yaml"
    benchmarks = [unprepared(tmp_path, name) for name in ("gqa", "textvqa")]
    given = {"model": "testbed:llava", "localizer": "./nowhere", "plc": "runs/mine/of/plc", "benchmarks": benchmarks}
    path.write_text(SUITE.format(**given))
    root = ["--vars", f"{{root: {tmp_path}/root}}"]
    code, told = check(str(path), *root)
    assert code == 1 and told[:2] == [
        f"{path}: localizer: ./nowhere: no such checkpoint folder",
        f"{path}: arms: model: runs/mine/of/plc: no such checkpoint folder",
    ]
    assert f"{path}: gqa: {tmp_path}/root/gqa/images: no such folder of images" in told
    assert f"{path}: textvqa: {tmp_path}/root/textvqa/TextVQA_0.5.1_val.json: no such annotation file" in told
    (tmp_path / "root").symlink_to(exported)
    assert check(str(path), *root) == (1, told[:2])
    assert check(str(path), *root, "--localizer", "testbed:localizer", "--arms", "[{method: fastv, layer: 1, "
                 "budget: 16}]") == (0, [f"{path}: ready"])  # fmt: skip
    code, told = check(str(path), *root, "--model", "a-lab/a-model")
    assert code == 1 and told[-1].startswith("model: a-lab/a-model is not in the local cache")
    code, told = check(str(path), *root, "--regions", "r.jsonl", "--grounding", "testbed:nothing")
    assert any(line.endswith("regions: r.jsonl: no such file") for line in told)
    assert any(": grounding: " in line and "nothing" in line for line in told)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"scorer: gqa": "scorer: gqqa"}, "unknown benchmark 'gqqa'; did you mean 'gqa'"),
        ({"scorer: gqa": "scorer: pathlib.Path"}, "benchmark 'pathlib.Path' is no Benchmark"),
        ({"scorer: gqa": "scorer: scienceqa"}, "gqa: annotations: scienceqa has 2: problems.json pid_splits.json"),
        ({"scorer: gqa": "scorer: null"}, "annotations are of no use without a scorer"),
        ({"official.asked": "official.aksed"}, "class_path 'cropl.testbed.official.aksed' cannot be imported"),
        ({"official.asked": "official.MARKER"}, "prompt cropl.testbed.official.MARKER: is no function"),
        ({"max_new_tokens": "max_tokens"}, "unknown key 'max_tokens'; did you mean 'max_new_tokens'"),
        ({"published.questions": "published.question"}, "cropl.data.published.question"),
        ({"sources:": "source:"}, "unknown key 'source'; did you mean 'sources'"),
        ({"images:": "image:"}, "sources[0]: cropl.data.readers.gqa.Gqa: unknown key 'image'; did you mean 'images'"),
        ({"gqa.Gqa": "gqa.Gqua"}, "cropl.data.readers.gqa.Gqua"),
        ({"benchmark: gqa": "benchmark: "}, "key 'benchmark' is missing"),
    ],
)
def test_a_benchmark_that_is_wrong_is_one_line_alone_and_in_a_suite(tmp_path, check, changes, message) -> None:
    path, suite = unprepared(tmp_path, "gqa", **changes), tmp_path / "suite.yaml"
    suite.write_text(SUITE.format(model="testbed:llava", localizer="x", plc="testbed:plc", benchmarks=[path]))
    for name in (path, str(suite)):
        code, told = check(name)
        assert code == 2 and len(told) == 1 and told[0].startswith("cropl: error: ") and message in told[0]


def test_a_wrong_way_of_writing_files_is_told(tmp_path, check) -> None:
    text = recipe.find("testbed/benchmark/gqa").read_text()
    (tmp_path / "gqa.yaml").write_text(text.replace("{folder:", "{fodler:"))
    code, told = check(str(tmp_path / "gqa.yaml"))
    assert code == 2 and "gqa: prepare cropl.testbed.official.export: unknown key 'fodler'" in told[0]


def test_a_suite_that_is_wrong_is_one_line(tmp_path, check) -> None:
    path = tmp_path / "suite.yaml"
    for benchmarks, message in (("[]", "benchmarks is an empty list"), ("[testbed/study]", "testbed/study is a study")):
        path.write_text(SUITE.format(model="testbed:llava", localizer="x", plc="y", benchmarks=benchmarks))
        code, told = check(str(path))
        assert code == 2 and message in told[0]
    path.write_text(SUITE.format(model="testbed:llava", localizer="x", plc="y", benchmarks="[testbed/benchmark/gqa]"))
    code, told = check(str(path), "--tables", "table1")
    assert code == 2 and "suite: tables: unknown value 'table1'" in told[0]
