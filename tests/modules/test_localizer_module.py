"""The localizer's module: what it predicts, what it logs for each source, and that processes stay in step."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import lightning as L
import pytest
import torch

from cropl.datamodules.testbed import TestbedQuestions
from cropl.grid import Region
from cropl.models.localizer import Localizer
from cropl.modules.localizer import LocalizerModule
from cropl.testbed.build import build_qwen2_vl
from cropl.testbed.samples import samples
from tests.modules.localizer_ranks import SOURCES, asked, scores, text

ROOT = Path(__file__).resolve().parent.parent.parent


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    torch.manual_seed(0)
    target = tmp_path_factory.mktemp("localizer")
    base = build_qwen2_vl(tmp_path_factory.mktemp("qwen2_vl"), layers=2, width=64)
    LocalizerModule(str(base)).export(target)
    return str(target)


@pytest.fixture(scope="module")
def module(folder):
    return LocalizerModule(folder).eval()


def decoder_lengths(module, step, batch):
    """Positions of every run of the decoder."""
    lengths: list[int] = []

    def note(decoder, args, kwargs):
        given = kwargs.get("inputs_embeds")
        lengths.append((kwargs["input_ids"] if given is None else given).shape[1])

    hook = module.vlm.decoder.register_forward_pre_hook(note, with_kwargs=True)
    try:
        step(batch, 0)
    finally:
        hook.remove()
    return lengths


@pytest.mark.parametrize(("readout", "runs"), [("greedy", 4), ("expected_recall:0.9", 2)])
def test_the_decoder_runs_equally_often_whatever_is_asked(folder, readout, runs):
    """Sharded processes gather each layer together: one with nothing to locate must not leave the others waiting."""
    module = LocalizerModule(folder, readout=readout).eval()
    some = samples("val", 3)
    for batch in ([*some, text()], [text()], some[:1]):
        assert len(decoder_lengths(module, module.validation_step, module.collate(batch))) == runs
        assert len(decoder_lengths(module, module.predict_step, module.collate(batch))) == runs


def test_predictions_are_one_for_each_real_sample(module, folder):
    some = samples("val", 12)[::4]
    unboxed = replace(some[1], key="unboxed", boxes=[], region=Region.full())
    batch = module.collate([some[0], text("words"), replace(some[2], valid=False), unboxed])
    found = module.predict_step(batch, 0)
    assert [one["key"] for one in found] == [some[0].key, "words", "unboxed"]
    expected = Localizer.from_pretrained(folder).locate(
        [some[0].image, some[1].image], [some[0].question, some[1].question]
    )
    assert [found[0]["region"], found[2]["region"]] == [list(region.as_tuple()) for region in expected]
    assert found[1] == {"key": "words", "region": [0, 0, 7, 7], "probability": None}
    json.dumps(found)


def test_a_prediction_knows_its_probability(folder):
    """As the distribution has it, by every read-out."""
    some = samples("val", 12)[::4]
    known = Localizer.from_pretrained(folder).distribution([s.image for s in some], [s.question for s in some])
    for readout in ("greedy", "coverage:0.9", "most_probable", "expected_recall:0.5"):
        module = LocalizerModule(folder, readout=readout).eval()
        found = module.predict_step({"samples": some, "valid": [True] * 3}, 0)
        p = known.probability([Region(*one["region"]) for one in found])
        assert [one["probability"] for one in found] == pytest.approx(p, rel=1e-3)


def test_predict_under_lightning_leaves_padding_out(module):
    data = TestbedQuestions("test", count=5, batch_size=4)
    trainer = L.Trainer(
        accelerator="cpu", logger=False, enable_progress_bar=False, enable_model_summary=False,
        enable_checkpointing=False,
    )  # fmt: skip
    batches = trainer.predict(module, data)
    keys = [one["key"] for batch in batches for one in batch]
    assert keys == [sample.key for sample in samples("test", 5)] and len(batches) == 2


def test_validation_logs_every_source(folder):
    found = scores(folder)
    names = {name for name in found if name.startswith("val/")}
    parts = ("mean_recall", "recall_gt_0.5", "recall_gt_0.7", "recall_gt_0.9", "mean_precision", "mean_iou",
             "region_share", "malformed_share")  # fmt: skip
    assert names == {f"val/{part}{end}" for part in parts for end in ("", *(f"/{source}" for source in SOURCES))}
    localizer = Localizer.from_pretrained(folder, dtype=torch.bfloat16)
    counted = [sample for sample in asked() if sample.valid and sample.boxes]
    regions = [localizer.locate([s.image], [s.question])[0] for s in counted]
    recall = sum(r.recall_against(s.region) for r, s in zip(regions, counted)) / len(counted)
    assert found["val/mean_recall"] == pytest.approx(recall, abs=0.2)


@pytest.mark.slow
def test_two_processes_log_what_one_does(folder, tmp_path):
    """Uneven parts, in bf16-true; then with all that counts on one process: the numbers are the same, exactly."""
    command = [sys.executable, "-m", "tests.modules.localizer_ranks", folder, str(tmp_path)]
    environment = {**os.environ, "CUDA_VISIBLE_DEVICES": "", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    alone = [scores(folder), scores(folder, first_only=True)]
    assert alone[0] != alone[1]
    for rank in (0, 1):
        assert json.loads((tmp_path / f"{rank}.json").read_text()) == alone
