"""lmms-eval itself on the testbed, offline: its scores and every single answer are those of `cropl evaluate`."""

from __future__ import annotations

import json
import os
import subprocess

import pytest
import yaml
from transformers import AutoTokenizer

from cropl.cli import main
from cropl.integrations import lmms_tasks
from cropl.testbed import weights
from tests.integrations import environment

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]

COUNT, MAX_NEW_TOKENS = 48, 8
ARMS = {
    "dense": {"method": "dense"},
    "ilp": {"method": "ilp", "region_source": "predicted", "layer": 1, "budget": 96},
    "fastv": {"method": "fastv", "layer": 1, "budget": 64},
    "random": {"method": "random", "layer": 1, "budget": 64},
}
MODEL_ARGS = {
    "dense": "method=dense",
    "ilp": "method=ilp,layer=1,localizer=testbed:localizer,factor={factor!r}",
    "fastv": "method=fastv,layer=1,keep=64",
    "random": "method=random,layer=1,keep=64,seed=0",
}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Rows and predictions of `cropl evaluate`, by method."""
    folder = tmp_path_factory.mktemp("study")
    recipe = {
        "model": "testbed:llava", "localizer": "testbed:localizer", "benchmark": "testbed",
        "data": {"class_path": "cropl.testbed.samples.samples", "init_args": {"split": "test", "count": COUNT}},
        "arms": list(ARMS.values()), "seeds": [0], "batch_size": 8, "max_new_tokens": MAX_NEW_TOKENS, "device": "cpu",
        "bootstrap": 10, "gallery": 0,
    }  # fmt: skip
    (folder / "study.yaml").write_text(yaml.safe_dump(recipe), encoding="utf-8")
    assert main(["evaluate", "-c", str(folder / "study.yaml"), "--out", str(folder / "out")]) == 0
    results = json.loads((folder / "out" / "results.json").read_text(encoding="utf-8"))
    rows = {row["method"]: row for row in results["rows"]}
    lines = (folder / "out" / "predictions.jsonl").read_text(encoding="utf-8").splitlines()
    return rows, [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def tasks(tmp_path_factory):
    return lmms_tasks.write(tmp_path_factory.mktemp("tasks"), COUNT, max_new_tokens=MAX_NEW_TOKENS).parent


@pytest.fixture(scope="module")
def lmms_eval(request, tmp_path_factory, tasks):
    """Runs the command line of lmms-eval with model arguments; its results and samples."""
    folder = tmp_path_factory.mktemp("lmms")
    built = environment.wheel(folder)
    python = environment.interpreter(request.config.cache.mkdir("lmms_eval"), built)
    site = environment.unpacked(built, folder / "site")
    offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "HF_HOME": str(folder / "hub")}
    launch = ("MASTER_ADDR", "MASTER_PORT", "LOCAL_RANK", "RANK", "WORLD_SIZE")
    env = {name: value for name, value in os.environ.items() if name not in launch}
    env |= {"PYTHONPATH": str(site), **offline}

    def run(name: str, model_args: str, *launcher: str) -> tuple[dict, list[dict]]:
        out = folder / name
        command = [
            python, *(launcher or ("-m",)), "lmms_eval", "--include_path", tasks, "--tasks", "cropl_testbed", "--model",
            "cropl", "--model_args", f"pretrained=testbed:llava,{model_args}", "--batch_size", "8", "--device", "cpu",
            "--output_path", out, "--log_samples",
        ]  # fmt: skip
        done = subprocess.run(list(map(str, command)), env=env, cwd=folder, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        (results,) = out.rglob("*_results.json")
        (samples,) = out.rglob("*_samples_cropl_testbed.jsonl")
        lines = [json.loads(line) for line in samples.read_text(encoding="utf-8").splitlines()]
        return json.loads(results.read_text(encoding="utf-8")), sorted(lines, key=lambda line: line["doc_id"])

    return run


def _score(results):
    return results["results"]["cropl_testbed"]["exact_match,none"]


@pytest.mark.parametrize("method", sorted(ARMS))
def test_scores_and_answers_are_those_of_cropl_evaluate(lmms_eval, study, method):
    rows, predictions = study
    results, samples = lmms_eval(method, MODEL_ARGS[method].format(factor=rows[method]["budget_factor"]))
    assert _score(results) == pytest.approx(rows[method]["accuracy"], abs=1e-12)
    assert len(samples) == len(predictions) == rows[method]["n"] == COUNT
    tokenizer = AutoTokenizer.from_pretrained(weights.resolve("testbed:llava"))
    for sample, line in zip(samples, predictions, strict=True):
        (arm,) = [arm for key, arm in line["arms"].items() if key.startswith(method)]
        assert sample["filtered_resps"] == arm["prediction"], line["key"]
        assert sample["exact_match"] == float(arm["correct"]) and sample["target"] == line["answers"][0]
        text = len(tokenizer(f"USER: {line['question']} ASSISTANT:")["input_ids"])
        left = sample["token_counts"][0]["input_tokens"] - text
        assert left == arm["tokens_kept"], line["key"]


def test_two_processes_share_the_questions(lmms_eval, study):
    rows, predictions = study
    launch = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node=2", "-m")
    results, samples = lmms_eval("two", MODEL_ARGS["fastv"], *launch)
    assert results["results"]["cropl_testbed"]["exact_match,none"] == pytest.approx(
        rows["fastv"]["accuracy"], abs=1e-12
    )
    wanted = [arm["prediction"] for line in predictions for key, arm in line["arms"].items() if "fastv" in key]
    assert [sample["filtered_resps"] for sample in samples] == wanted
