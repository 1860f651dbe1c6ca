"""Several processes that share a suite's questions: what each is told to do, and that all come to one result."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from cropl.cli import main
from cropl.commands import evaluate_processes
from cropl.errors import RunError, UsageError
from cropl.evaluation import collect, fingerprint
from cropl.testbed.official import export

TIMES = ("seconds", "encode_seconds", "localizer_seconds", "peak_memory_bytes", "text_only_seconds", "threads")


@pytest.fixture(autouse=True)
def same_code(monkeypatch) -> None:
    """Sources that are edited meanwhile change nothing."""
    monkeypatch.setattr(fingerprint, "code", lambda: "this")


@pytest.fixture(scope="module")
def suite(tmp_path_factory, tiny_llava) -> str:
    """A suite without a localizer, whose regions parts would wait for."""
    folder: Path = tmp_path_factory.mktemp("parts")
    entries = [{"recipe": f"testbed/benchmark/{name}", "prepare": None} for name in ("scienceqa", "mme")]
    recipe = {
        "vars": {"root": str(export(folder / "official", count=14))}, "model": tiny_llava, "benchmarks": entries,
        "arms": [{"method": "random", "layer": 1, "budget": 16}], "seeds": [0, 1], "bootstrap": 20, "gallery": 0,
    }  # fmt: skip
    (folder / "suite.yaml").write_text(json.dumps(recipe))
    return str(folder / "suite.yaml")


@pytest.fixture(scope="module")
def alone(suite, tmp_path_factory) -> Any:
    out = tmp_path_factory.mktemp("alone") / "out"
    assert main(["evaluate", "-c", suite, "--out", str(out)]) == 0
    return plain(out)


def plain(out: Path) -> Any:
    """Results but for times, and predictions."""
    results = json.loads((out / "results.json").read_text())
    for row in results["rows"]:
        row.update(dict.fromkeys(TIMES))
    for line in results["suite"]:
        line["seconds"] = None
    return results, [(out / name / "predictions.jsonl").read_text() for name in results["benchmarks"]]


def test_parts_answer_their_shares_and_the_last_run_none(suite, alone, tmp_path, monkeypatch, capsys) -> None:
    out, shares = tmp_path / "out", []
    for index in (1, 0, 2):
        assert main(["evaluate", "-c", suite, "--out", str(out), "--part", f"{index}/3"]) == 0
        assert f"part {index} of 3 is done; run without --part when all are" in capsys.readouterr().out
        lines = (out / "mme/.partial" / f"answers.{index}-of-3.jsonl").read_text().splitlines()
        shares.append({json.loads(line).get("key") for line in lines} - {None})
    assert not list(out.rglob("results.json")), "of a part there are no results"
    assert sum(map(len, shares)) == len(set().union(*shares)) == 28 and all(shares)

    def none_left(vlm: Any, samples: Any, runs: Any, groups: Any, missing: Any, *rest: Any) -> Any:
        assert not any(missing.values())
        return []

    monkeypatch.setattr(collect, "answer_all", none_left)
    assert main(["evaluate", "-c", suite, "--out", str(out)]) == 0
    assert plain(out) == alone and not list(out.rglob(".partial"))


class Inside:
    """A process that runs here, and is done when it is started."""

    started: list[list[str]] = []

    def __init__(self, command: list[str], env: dict[str, str], **options: Any) -> None:
        assert command[1:3] == ["-m", "cropl"] and env[evaluate_processes.WATCHED] == "1"
        self.started.append(command[3:])
        self.code = main(command[3:])

    def poll(self) -> int:
        return self.code

    wait = kill = poll


def test_processes_are_told_the_same_recipe(suite, alone, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(evaluate_processes, "subprocess", SimpleNamespace(Popen=Inside, PIPE=-1, DEVNULL=-3))
    monkeypatch.setattr(Inside, "started", [])
    arms = ["--arms", json.dumps([{"method": "random", "layer": 1, "budget": 16}])]
    flags = [*arms, "--out", str(tmp_path / "out"), "--batch-size", "5", "--attention", "null"]
    assert main(["evaluate", "-c", suite, *flags, "--processes", "2"]) == 0
    assert [command[-2:] for command in Inside.started] == [["--part", "0/2"], ["--part", "1/2"]]
    results, predictions = plain(tmp_path / "out")
    for row in results["rows"]:
        assert row["batch_size"] == 5
        row["batch_size"] = 16
    assert (results, predictions) == alone


@pytest.mark.parametrize(("code", "error", "exits"), [(1, RunError, 1), (2, UsageError, 2), (-9, RunError, 1)])
def test_a_process_that_fails_stops_the_others(suite, tmp_path, monkeypatch, capsys, code, error, exits) -> None:
    killed = []

    class Failing:
        def __init__(self, command: list[str], **options: Any) -> None:
            self.part = command[-1]

        def poll(self) -> int | None:
            return code if self.part == "1/3" else None

        def kill(self) -> None:
            killed.append(self.part)

        def wait(self) -> None:
            assert self.part in killed or self.part == "1/3"

    monkeypatch.setattr(evaluate_processes, "subprocess", SimpleNamespace(Popen=Failing, PIPE=-1, DEVNULL=-3))
    with pytest.raises(error, match=f"part 1 of 3 ended with exit code {code}; what is answered stays"):
        evaluate_processes.run_parts([suite], {}, 3, None)
    assert killed == ["0/3", "2/3"]
    assert main(["evaluate", "-c", suite, "--out", str(tmp_path / "out"), "--processes", "3"]) == exits
    assert f"part 1 of 3 ended with exit code {code}" in capsys.readouterr().err


def test_gpus_and_cores_are_dealt_out(monkeypatch) -> None:
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    given = [evaluate_processes._environment(index, 3, 2) for index in range(3)]
    assert [one["CUDA_VISIBLE_DEVICES"] for one in given] == ["0", "1", "0"]
    assert all("OMP_NUM_THREADS" not in one for one in given)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    assert evaluate_processes._environment(1, 2, 2)["CUDA_VISIBLE_DEVICES"] == "7"
    assert evaluate_processes._environment(0, 3, 0)["OMP_NUM_THREADS"] == "2"
