"""What `cropl evaluate` cannot do is told in one line that names the file or key, before a question is answered."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from cropl.cli import main
from cropl.evaluation import collect, fingerprint
from cropl.evaluation.alone import working_in
from cropl.testbed.official import export

RECIPE = """
model: {model}
arms: [{{method: fastv, layer: 1, budget: 16}}]
bootstrap: 20
gallery: 0
"""
ENTRY = {"recipe": "testbed/benchmark/textvqa", "prepare": None}


@pytest.fixture(scope="module")
def exported(tmp_path_factory) -> Path:
    return export(tmp_path_factory.mktemp("faults") / "official", count=14)


@pytest.fixture(autouse=True)
def same_code(monkeypatch) -> None:
    """Sources that are edited meanwhile change nothing."""
    monkeypatch.setattr(fingerprint, "code", lambda: "this")


@pytest.fixture
def evaluate(tmp_path, exported, tiny_llava, capsys, monkeypatch) -> Callable[..., tuple[int, str]]:
    """Runs a suite of one benchmark; its exit code, and what went wrong, in one line."""
    path = tmp_path / "small.yaml"
    path.write_text(RECIPE.format(model=tiny_llava))
    monkeypatch.chdir(tmp_path)

    def run(*flags: str, root: Path = exported, entry: Any = ENTRY) -> tuple[int, str]:
        benchmarks = json.dumps([{**entry, "vars": {"root": str(root)}}])
        code = main(["evaluate", "-c", str(path), "--out", "out", "--benchmarks", benchmarks, *flags])
        lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("cropl: ")]
        assert len(lines) == (code != 0)
        return code, "".join(lines)

    return run


@pytest.fixture
def files(tmp_path, exported) -> Path:
    """A copy of the files of TextVQA, to spoil."""
    shutil.copytree(exported / "textvqa", tmp_path / "root/textvqa")
    return tmp_path / "root"


@pytest.fixture
def unanswered(monkeypatch) -> None:
    """No question may be answered."""
    monkeypatch.setattr(collect, "answer_all", None)


pytestmark = pytest.mark.usefixtures("same_code")


@pytest.mark.usefixtures("unanswered")
def test_an_image_that_is_missing(evaluate, files) -> None:
    image = sorted((files / "textvqa/train_images").iterdir())[3]
    image.unlink()
    code, told = evaluate(root=files)
    assert code == 2 and str(image) in told and "textvqa, question " in told
    assert "1 of 21 questions cannot be asked, and an evaluation may leave none out" in told


@pytest.mark.usefixtures("unanswered")
def test_an_image_that_is_none(evaluate, files) -> None:
    image = sorted((files / "textvqa/train_images").iterdir())[0]
    image.write_bytes(b"<html>404</html>")
    code, told = evaluate(root=files)
    assert code == 2 and image.name in told


@pytest.mark.usefixtures("unanswered")
@pytest.mark.parametrize("name", ["llava_textvqa_val_v051_ocr.jsonl", "TextVQA_0.5.1_val.json"])
def test_a_file_that_is_missing_or_torn(evaluate, files, name) -> None:
    file = files / "textvqa" / name
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    code, told = evaluate(root=files)
    assert code == 2 and name in told
    file.unlink()
    code, told = evaluate(root=files)
    assert code == 2 and name in told and "no such" in told


@pytest.mark.usefixtures("unanswered")
def test_questions_and_annotations_that_differ(evaluate, files) -> None:
    file = files / "textvqa/TextVQA_0.5.1_val.json"
    content = json.loads(file.read_text())
    lost = content["data"].pop(2)
    file.write_text(json.dumps(content))
    code, told = evaluate(root=files)
    assert code == 2 and "textvqa: the 21 questions asked are not the 20 of the annotations: 1 not in" in told
    assert lost["image_id"] in told
    content["data"] += [lost, {**lost, "question_id": 99, "image_id": "other"}]
    file.write_text(json.dumps(content))
    code, told = evaluate(root=files)
    assert code == 2 and "1 in the annotations and not asked" in told


@pytest.mark.usefixtures("unanswered")
@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"prompt": "builtins.id"}, "prompt builtins.id: gives"),
        ({"prompt": "cropl.testbed.official.aksed"}, "class_path 'cropl.testbed.official.aksed' cannot be imported"),
        ({"prompt": 3}, "testbed/benchmark/textvqa: study: prompt 3 must be text or null"),
        ({"scorer": "textvq"}, "unknown benchmark 'textvq'; did you mean 'textvqa'"),
        ({"scorer": "textvq", "annotations": None}, "unknown benchmark 'textvq'; did you mean 'textvqa'"),
        ({"scorer": None}, "annotations are of no use without a scorer"),
        ({"annotations": ["a", "b"]}, "annotations: textvqa has 1: TextVQA_0.5.1_val.json"),
        ({"data": {"class_path": "cropl.data.published.question"}}, "cropl.data.published.question"),
        ({"data": {"class_path": "cropl.data.published.questions", "init_args": {"source": []}}}, "'source'"),
        (
            {"data": {"class_path": "cropl.data.published.questions", "init_args": {"sources": []}}},
            "the 0 questions asked",
        ),
        ({"prepare": {"class_path": "cropl.nowhere"}}, "class_path 'cropl.nowhere' cannot be imported"),
    ],
)
def test_a_benchmark_that_cannot_be_asked(evaluate, changes, told) -> None:
    code, line = evaluate(entry={**ENTRY, **changes})
    assert code == 2 and told in line


@pytest.mark.usefixtures("unanswered")
@pytest.mark.parametrize(
    ("flags", "told"),
    [
        (["--part", "2/2"], "--part 2/2: must be INDEX/COUNT"),
        (["--part", "1"], "--part 1: must be INDEX/COUNT"),
        (["--part"], "--part True: must be INDEX/COUNT"),
        (["--processes", "0"], "--processes 0"),
        (["--processes", "two"], "--processes"),
        (["--fresh", "soon"], "--fresh soon: takes no value"),
        (["--part", "0/2", "--processes", "2"], "--part goes with neither --processes nor --fresh"),
        (["--part", "0/2", "--fresh"], "--part goes with neither --processes nor --fresh"),
        (["--limit", "0"], "study: limit 0 must be an integer, at least 1"),
        (["--benchmark", "gqa"], "suite: unknown key 'benchmark'; did you mean 'benchmarks'"),
        (["--benchmarks", "[]"], "suite: benchmarks is an empty list"),
        (["--benchmarks", "null"], "suite: a benchmark must be a recipe's name"),
        (["-c", "benchmark/gqa"], "benchmark/gqa is a benchmark: cropl evaluate -c STUDY --benchmarks benchmark/gqa"),
        (["--paper", "LLaVA"], "paper: no figures of a model 'LLaVA'"),
    ],
)
def test_flags_that_are_wrong(evaluate, flags, told) -> None:
    code, line = evaluate(*flags)
    assert code == 2 and told in line


@pytest.mark.usefixtures("unanswered")
def test_a_model_that_is_not_there(evaluate) -> None:
    code, told = evaluate("--model", "./nowhere")
    assert code == 2 and "./nowhere: no such folder of a model" in told


def test_two_runs_into_one_folder_at_once(evaluate, tmp_path) -> None:
    busy = tmp_path / "out/textvqa/.partial/answers.0-of-1.jsonl.lock"
    busy.parent.mkdir(parents=True)
    with FileLock(busy):
        code, told = evaluate("--limit", "2")
    assert code == 1 and str(busy.relative_to(tmp_path)).removesuffix(".lock") in told
    assert "another run is writing it; wait for its end, or give another --out" in told
    for shared, flags in ((False, ["--part", "0/2"]), (False, ["--fresh"]), (True, []), (False, [])):
        with working_in(tmp_path / "out", shared):
            code, told = evaluate("--limit", "2", *flags)
        assert code == 1 and told.endswith("out: another run is writing there; wait for its end, or give another --out")
    assert evaluate("--limit", "2") == (0, "")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["results.json", "textvqa"]


def test_other_settings_into_an_interrupted_run(evaluate, tmp_path) -> None:
    assert evaluate("--limit", "4", "--part", "0/2") == (0, "")
    for flags, name in ((["--limit", "3"], "questions"), (["--limit", "4", "--attention", "eager"], "model")):
        code, told = evaluate(*flags)
        assert code == 2 and f"interrupted run with other settings ({name}" in told
        assert "out/textvqa/.partial" in told and "--fresh to begin anew, or give another --out" in told
    assert not (tmp_path / "out/results.json").exists()
    assert evaluate("--limit", "3", "--fresh") == (0, "")
    assert json.loads((tmp_path / "out/results.json").read_text())["rows"][0]["n"] == 3
    assert evaluate("--limit", "2") == (0, ""), "a run that is done is not continued"


def test_a_run_that_fails_in_the_middle_tells_nothing_as_a_result(evaluate, tmp_path, monkeypatch) -> None:
    asked = collect.answer_all

    def full_disk(*args: Any) -> Any:
        yield next(asked(*args))
        raise OSError(28, "No space left on device", "out/textvqa/.partial/answers.0-of-1.jsonl")

    monkeypatch.setattr(collect, "answer_all", full_disk)
    code, told = evaluate("--limit", "4")
    assert code == 1 and "out/textvqa/.partial/answers.0-of-1.jsonl: no space left on device" in told
    assert [path.name for path in (tmp_path / "out").rglob("*.json*") if ".partial" not in path.parts] == []
    monkeypatch.setattr(collect, "answer_all", asked)
    assert evaluate("--limit", "4") == (0, "")
