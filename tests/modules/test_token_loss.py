"""Every token of an optimizer step weighs the same, however its samples are batched and shared out."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import DataLoader

from cropl.modules.documents import origins
from cropl.modules.instruction import InstructionModule
from cropl.modules.token_loss import TokenLossModule
from cropl.testbed.build import build_llava, build_qwen2_vl
from tests.modules.gradients import gradients, mixed

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = {"llava": build_llava, "qwen2_vl": build_qwen2_vl}


@pytest.fixture(scope="module", params=["llava", "qwen2_vl"])
def checkpoint(request, tmp_path_factory):
    return str(BUILD[request.param](tmp_path_factory.mktemp(request.param), layers=2, width=32))


class Line(TokenLossModule):
    """Squared errors of a linear function; each batch is a list of samples, each of some tokens (x, y)."""

    def __init__(self, weighting="token"):
        super().__init__(weighting)
        self.line = nn.Linear(3, 1)
        with torch.no_grad():
            self.line.weight.copy_(torch.tensor([[1.0, -2.0, 0.5]]))
            self.line.bias.zero_()
        self.given = []

    def training_step(self, batch, index):
        lengths = torch.tensor([len(sample) for sample in batch])
        tokens = torch.cat(batch)
        sample_T = torch.repeat_interleave(torch.arange(len(batch)), lengths)
        loss_T = (self.line(tokens[:, :3])[:, 0] - tokens[:, 3]).square()
        return self.summed(loss_T, sample_T, sample_T % 2, ["even", "odd"])[0]

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)

    def configure_gradient_clipping(self, optimizer, gradient_clip_val=None, gradient_clip_algorithm=None):
        self.given.append(self.line.weight.grad.clone())  # what clipping gets
        super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)


def line_gradients(samples, batch_size, accumulate, weighting="token"):
    module = Line(weighting)
    trainer = L.Trainer(
        accelerator="cpu", max_epochs=1, accumulate_grad_batches=accumulate, logger=False, enable_checkpointing=False,
        enable_progress_bar=False, enable_model_summary=False, gradient_clip_val=1e6,
    )  # fmt: skip
    trainer.fit(module, DataLoader(samples, batch_size, collate_fn=list))
    return module.given, trainer.callback_metrics


def reference(samples, weighting):
    """Gradient of the mean over tokens, or over the means of samples that have any."""
    line = Line().line
    losses = [(line(one[:, :3])[:, 0] - one[:, 3]).square() for one in samples if len(one)]
    loss = torch.cat(losses).mean() if weighting == "token" else torch.stack([one.mean() for one in losses]).mean()
    loss.backward()
    return line.weight.grad, torch.cat(losses).mean().item()


@pytest.mark.parametrize("weighting", ["token", "sample"])
def test_windows_of_uneven_batches(weighting):
    torch.manual_seed(0)
    samples = [torch.randn(count, 4) for count in (1, 7, 0, 3, 12, 2, 5, 1, 4, 9, 6)]
    whole, _ = reference(samples[:8], weighting)
    rest, loss = reference(samples[8:], weighting)
    for batch_size, accumulate in ((8, 1), (4, 2), (2, 4), (1, 8)):  # the last window of an epoch is shorter
        given, logged = line_gradients(samples, batch_size, accumulate, weighting)
        assert len(given) == 2
        torch.testing.assert_close(given[0], whole, atol=1e-6, rtol=1e-6)
        torch.testing.assert_close(given[1], rest, atol=1e-6, rtol=1e-6)
        assert float(logged["train/loss"]) == pytest.approx(loss, rel=1e-5)
    losses = [(Line().line(one[:, :3])[:, 0] - one[:, 3]).square() for one in samples[8:]]
    _, logged = line_gradients(samples, 8, 1)
    assert float(logged["train/loss/odd"]) == pytest.approx(float(losses[1].mean()), rel=1e-5)
    assert float(logged["train/loss/even"]) == pytest.approx(float(torch.cat(losses[::2]).mean()), rel=1e-5)


def test_a_window_without_tokens_has_no_gradient():
    empty = torch.zeros(0, 4)
    given, logged = line_gradients([empty, empty, torch.ones(2, 4), empty], 1, 2)
    assert (given[0] == 0).all() and (given[1] != 0).any() and torch.isfinite(given[1]).all()
    assert float(logged["train/loss"]) == pytest.approx(2.25)


def test_another_weighting_is_refused():
    with pytest.raises(ValueError, match="loss_weighting 'batch'"):
        Line("batch")


@pytest.mark.parametrize("weighting", ["token", "sample"])
def test_an_instruction_step_is_that_of_the_plain_mean(checkpoint, weighting):
    """One process, one batch: as `loss = cross_entropy(logits, targets)` would be."""
    given, logged = gradients(checkpoint, 8, loss_weighting=weighting)
    module = InstructionModule(checkpoint).train()
    batch = module.collate(mixed())
    rows, logits, targets = module(batch)
    if weighting == "token":
        loss = F.cross_entropy(logits, targets)
    else:
        loss_T, sample_T = F.cross_entropy(logits, targets, reduction="none"), origins(rows)[0]
        loss = torch.stack([loss_T[sample_T == n].mean() for n in sample_T.unique()]).mean()
        assert len(sample_T.unique()) == 7  # one is not valid
    loss.backward()
    for name, parameter in module.named_parameters():
        if parameter.requires_grad:
            torch.testing.assert_close(given[name], parameter.grad, atol=1e-6, rtol=1e-5)
    assert any("projector" in name or "merger" in name for name, grad in given.items() if grad.abs().sum() > 0)
    mean = float(F.cross_entropy(logits, targets))
    assert logged["train/loss"] == pytest.approx(mean, rel=1e-5)
    assert {"train/loss/testbed", "train/loss/texts", "train/padding", "train/cut"} <= set(logged)
    assert 0 < logged["train/padding"] < 0.5


def test_accumulation_gives_the_gradient_of_one_batch(checkpoint):
    one, _ = gradients(checkpoint, 8)
    many, logged = gradients(checkpoint, 1)
    assert one.keys() == many.keys()
    for name in one:
        torch.testing.assert_close(many[name], one[name], atol=1e-6, rtol=1e-5)


@pytest.mark.slow
def test_two_processes_give_the_gradient_of_one(checkpoint, tmp_path):
    """Rank 1 has texts alone: it still runs tower and projector, or rank 0 would wait for it."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    args = [sys.executable, "-m", "tests.modules.gradients", checkpoint, str(tmp_path)]
    done = subprocess.run(args, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]
    one, logged = gradients(checkpoint, 8)
    for rank in range(2):
        given, told = torch.load(tmp_path / f"{rank}.pt")
        assert one.keys() == given.keys()
        for name in one:
            torch.testing.assert_close(given[name], one[name], atol=1e-6, rtol=1e-5)
        assert told["train/loss"] == pytest.approx(logged["train/loss"], rel=1e-5)


def test_evidence_weighs_as_a_token_does(tmp_path):
    """With the second loss too, one batch of eight is eight batches of one, where all have as many tokens."""
    folder = str(build_llava(tmp_path, layers=4, width=32))
    module = InstructionModule(folder, evidence_weight=0.5, evidence_layers=(1, 2)).train()
    module.log = module.log_dict = lambda *args, **kwargs: None
    batch = module.collate(mixed()[1:3])
    rows, logits, targets = module(batch)
    plain = F.cross_entropy(logits, targets)
    total = module.training_step(batch, 0)
    weight, ce, tokens = module._window.tolist()
    assert weight == tokens == len(targets) and ce == pytest.approx(float(plain) * tokens, rel=1e-5)
    module.evidence_weight = 1.0
    doubled = module.training_step(batch, 0)
    extra = (float(total) - ce) / tokens
    assert extra > 0 and (float(doubled) - ce) / tokens == pytest.approx(2 * extra, rel=1e-4)


def test_what_is_cut_away_trains_nothing(checkpoint):
    given, logged = gradients(checkpoint, 8, max_tokens=1)
    assert all((grad == 0).all() for grad in given.values()) and "train/loss" not in logged
    assert logged["train/cut"] == 1
