"""The answering module under Lightning: methods, marked padding, and one process against two."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
from torch.utils.data import DataLoader

from cropl.cli import main
from cropl.grid import Region
from cropl.metrics.answer import exact_match
from cropl.modules.answerer import AnswererModule
from cropl.pruning import ILP, Dense, RandomTokens
from cropl.testbed.samples import samples as scenes

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def questions():
    return scenes("test", 5)


def as_is(batch):
    return batch


def trainer():
    return L.Trainer(
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def test_steps(tiny_llava, tiny_localizer, questions):
    module = AnswererModule(tiny_llava, tiny_localizer, ILP(layer=1), budget=20, max_new_tokens=2)
    loader = DataLoader(questions, batch_size=2, collate_fn=as_is)
    batches = trainer().predict(module, loader)
    lines = [line for batch in batches for line in batch]
    assert [line["key"] for line in lines] == [sample.key for sample in questions]
    assert all(line["tokens_kept"] == 20 and len(line["region"]) == 4 for line in lines)
    scores = trainer().test(module, loader, verbose=False)[0]
    right = [exact_match(line["prediction"], sample.answers) for line, sample in zip(lines, questions)]
    assert scores["test/accuracy"] == pytest.approx(sum(right) / 5)
    assert {"test/mean_recall", "test/recall_gt_0.9"} <= set(scores)


def test_padding_is_left_out(tiny_llava, questions):
    module = AnswererModule(tiny_llava, None, ILP(layer=1), "gt", max_new_tokens=1)
    batch = {"samples": [*questions[:2], questions[0]], "valid": [True, True, False]}
    module.test_step(batch, 0)
    assert module.accuracy.counts[:, 1].sum() == 2 and module.recall.compute()["n"] == 2
    assert module.recall.compute()["mean_recall"] == 1
    assert len(module.predict_step(batch, 0)) == 2


def bare(sample):
    return dataclasses.replace(sample, boxes=[], region=Region.full())


def test_only_true_regions_are_scored(tiny_llava, tiny_localizer, questions, caplog):
    mixed = [bare(questions[0]), *questions[1:3]]
    module = AnswererModule(tiny_llava, tiny_localizer, ILP(layer=1), max_new_tokens=1)
    scores = trainer().test(module, DataLoader(mixed, batch_size=2, collate_fn=as_is), verbose=False)[0]
    regions = module.answer(mixed)[1]
    expected = sum(regions[i].recall_against(mixed[i].region) for i in (1, 2)) / 2
    assert scores["test/recall_n"] == 2 and scores["test/mean_recall"] == pytest.approx(expected)
    none = DataLoader([bare(sample) for sample in mixed], batch_size=2, collate_fn=as_is)
    scores = trainer().test(module, none, verbose=False)[0]
    assert scores["test/recall_n"] == 0 and "test/mean_recall" not in scores and "test/accuracy" in scores
    assert "evidence boxes" not in caplog.text


def test_true_regions_need_boxes(tiny_llava, questions, caplog):
    module = AnswererModule(tiny_llava, None, ILP(layer=1), "gt", max_new_tokens=1)
    mixed = DataLoader([questions[0], bare(questions[1])], batch_size=1, collate_fn=as_is)
    assert trainer().test(module, mixed, verbose=False)[0]["test/recall_n"] == 1
    assert caplog.text.count("has no evidence boxes") == 1 and questions[1].key in caplog.text
    none = DataLoader([bare(questions[0])], batch_size=1, collate_fn=as_is)
    with pytest.raises(ValueError, match="no question has evidence boxes"):
        trainer().test(module, none, verbose=False)


@pytest.mark.parametrize("method", [None, Dense(), RandomTokens(tokens=7, layer=1)])
def test_methods_without_regions(tiny_llava, questions, method):
    module = AnswererModule(tiny_llava, None, method, "none", max_new_tokens=1)
    texts, regions, kept = module.answer(questions[:2])
    assert len(texts) == 2 and regions is None
    assert kept == ([7, 7] if isinstance(method, RandomTokens) else [144, 144])


def test_full_layers_answer_like_dense(tiny_llava, questions):
    dense = AnswererModule(tiny_llava, None, None, "none", max_new_tokens=2).answer(questions)[0]
    assert AnswererModule(tiny_llava, None, ILP(layer=3), "gt", max_new_tokens=2).answer(questions)[0] == dense


def test_controls_use_the_localizer(tiny_llava, tiny_localizer, questions):
    areas = []
    for source in ("predicted", "center", "random"):
        module = AnswererModule(tiny_llava, tiny_localizer, ILP(layer=1), source, max_new_tokens=1)
        regions = module.answer(questions[:3])[1]
        areas.append([region.area for region in regions])
    assert areas[0] == areas[1] == areas[2]


@pytest.mark.parametrize(("given", "meant"), [(20, 20), (20.0, 20), (0.25, 0.25), (1.0, 1.0)])
def test_a_count_that_was_parsed_as_a_float(tiny_llava, given, meant):
    budget = AnswererModule(tiny_llava, None, ILP(layer=1), "gt", budget=given).budget
    assert budget == meant and type(budget) is type(meant)


def test_errors(tiny_llava):
    with pytest.raises(ValueError, match="region_source other than 'none'"):
        AnswererModule(tiny_llava, None, ILP(layer=1), "none")
    with pytest.raises(ValueError, match="needs a localizer"):
        AnswererModule(tiny_llava, None, ILP(layer=1), "predicted")


SCRIPT = """
import json, sys, lightning.pytorch as pl
from cropl import cli

def keep(self, trainer, module):
    if trainer.is_global_zero:
        with open(sys.argv[1], "w") as file:
            json.dump({name: float(value) for name, value in trainer.callback_metrics.items()}, file)

pl.callbacks.Callback.on_test_end = keep
sys.exit(cli.main(sys.argv[2:]))
"""


def test_two_processes_score_like_one(tiny_llava, tiny_localizer, questions, tmp_path):
    (tmp_path / "run.py").write_text(SCRIPT)
    flags = [
        "test", "-c", "testbed/ilp", "--model.model", tiny_llava, "--model.localizer", tiny_localizer,
        "--model.budget", "20", "--model.max_new_tokens", "1", "--data.count", "5", "--data.batch_size", "2",
        "--trainer.enable_progress_bar", "false", "--trainer.devices", "2",
    ]  # fmt: skip
    args = [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "two.json"), *flags]
    done = subprocess.run(args, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    module = AnswererModule(tiny_llava, tiny_localizer, ILP(layer=1), budget=20, max_new_tokens=1)
    one = trainer().test(module, DataLoader(questions, batch_size=2, collate_fn=as_is), verbose=False)[0]
    assert json.loads((tmp_path / "two.json").read_text()) == one


def test_from_the_command_line(tiny_llava, capsys):
    flags = ["--model.model", tiny_llava, "--model.localizer", "null", "--model.region_source", "gt"]
    assert main(["test", "-c", "testbed/ilp", *flags, "--data.count", "2", "--model.max_new_tokens", "1"]) == 0
    assert "test/accuracy" in capsys.readouterr().out
