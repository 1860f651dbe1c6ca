"""Localizing ahead under Lightning: what localizing and answering in turn gives, and nothing left behind."""

from __future__ import annotations

import json
import multiprocessing
import subprocess
import sys
import threading
import time

import lightning as L
import pytest
import torch
from torch.utils.data import DataLoader

from cropl.cli import main
from cropl.data.writer import ShardWriter
from cropl.datamodules.benchmark import BenchmarkShards
from cropl.datamodules.testbed import TestbedQuestions
from cropl.errors import RunError
from cropl.evaluation.pipeline.stage import LOCALIZER
from cropl.models.localizer import Localizer
from cropl.modules.answerer import AnswererModule
from cropl.pruning import ILP, RandomTokens
from tests.modules.test_answerer import ROOT, SCRIPT, as_is, trainer


@pytest.fixture(scope="module")
def localizer(tiny_localizer):
    return Localizer.from_pretrained(tiny_localizer, device="cpu")


def answering(model, localizer, ahead=0, source="predicted", **options):
    return AnswererModule(model, localizer, ILP(layer=1), source, max_new_tokens=2, ahead=ahead, **options)


def running() -> list[str]:
    names = [each.name for each in [*threading.enumerate(), *multiprocessing.active_children()]]
    return [name for name in names if name in (LOCALIZER, "cropl pairs")]


def all_ended(within: float = 5) -> bool:
    deadline = time.monotonic() + within
    while running() and time.monotonic() < deadline:
        time.sleep(0.01)
    return not running()


@pytest.mark.parametrize("source", ["predicted", "center", "random"])
def test_ahead_is_as_one_after_the_other(tiny_llava, localizer, source):
    data = TestbedQuestions(count=5, batch_size=2)
    found = []
    for ahead in (0, 2):
        module = answering(tiny_llava, localizer, ahead, source)
        found.append((trainer().predict(module, data), trainer().test(module, data, verbose=False)))
        assert all_ended()
    assert found[0] == found[1]
    lines = [line for batch in found[0][0] for line in batch]
    assert len(lines) == 5 and all(len(line["region"]) == 4 for line in lines)
    assert found[0][1][0]["test/recall_n"] == 5


class Once(Localizer):
    """Counts what it is asked."""

    asked = 0

    def locate(self, images, questions):
        self.asked += len(questions)
        return super().locate(images, questions)


def test_other_loaders_are_wrapped(tiny_llava, tiny_localizer):
    localizer = Once.from_pretrained(tiny_localizer, device="cpu")
    data = TestbedQuestions(count=4, batch_size=2)
    data.setup()
    loader = DataLoader(data.samples, batch_size=2, collate_fn=as_is)
    module = answering(tiny_llava, localizer, 1)
    with pytest.raises(ValueError, match=r"ahead=1: these batches came without regions.*localized_ahead\(loader\)"):
        trainer().predict(module, loader)
    assert localizer.asked == 0
    wrapped = trainer().predict(module, module.localized_ahead(loader))
    assert localizer.asked == 4  # none of them twice
    assert wrapped == trainer().predict(answering(tiny_llava, localizer), loader)
    assert answering(tiny_llava, localizer).localized_ahead(loader) is loader


def test_shards_are_localized_ahead(tiny_llava, localizer, tmp_path):
    data = TestbedQuestions(count=3)
    data.setup()
    with ShardWriter(tmp_path / "shards") as writer:
        for sample in data.samples:
            writer.write(sample)
    shards = BenchmarkShards(str(tmp_path / "shards"), eval_batch=2, num_workers=0)
    plain = trainer().predict(answering(tiny_llava, localizer), shards)
    assert trainer().predict(answering(tiny_llava, localizer, 2), shards) == plain
    assert sum(len(batch) for batch in plain) == 3


class Breaks(L.Callback):
    def on_predict_batch_end(self, *_, **__):
        raise KeyError("midway")


def cut_short(module, how):
    cut = trainer()
    if how == "raises":
        cut.callbacks.append(Breaks())
        with pytest.raises(KeyError, match="midway") as error:
            cut.predict(module, TestbedQuestions(count=20, batch_size=1))
        assert error.traceback and all_ended()  # also while somebody holds the error
    else:
        cut.limit_predict_batches = 2
        assert len(cut.predict(module, TestbedQuestions(count=20, batch_size=1))) == 2
    assert all_ended()


@pytest.mark.parametrize("how", ["raises", "limit"])
def test_the_localizer_ends_with_a_run_that_is_cut_short(tiny_llava, localizer, how):
    cut_short(answering(tiny_llava, localizer, 1), how)


class Lost(Localizer):
    """Runs out of memory."""

    def locate(self, images, questions):
        raise torch.OutOfMemoryError("no memory is left")


def test_a_localizer_that_fails_ends_the_run(tiny_llava, tiny_localizer):
    module = answering(tiny_llava, Lost.from_pretrained(tiny_localizer, device="cpu"), 2)
    with pytest.raises(RunError, match="could not be localized.*no memory"):
        trainer().test(module, TestbedQuestions(count=2, batch_size=1), verbose=False)


def test_what_ahead_cannot_be(tiny_llava, tiny_localizer, localizer):
    for wrong in (
        lambda: answering(tiny_llava, None, 2, "gt"),
        lambda: AnswererModule(tiny_llava, None, None, "none", ahead=1),
        lambda: AnswererModule(tiny_llava, None, RandomTokens(tokens=7, layer=1), "none", ahead=1),
    ):
        with pytest.raises(ValueError, match="has no effect.*leave it out"):
            wrong()
    with pytest.raises(ValueError, match="at least 0"):
        answering(tiny_llava, tiny_localizer, -1)
    for unused in ((tiny_localizer, 0), (localizer, 1)):
        with pytest.raises(ValueError, match="localizer_threads are of the localizer's own process"):
            answering(tiny_llava, *unused, localizer_threads=1)
    with pytest.raises(ValueError, match="localizer_threads must be at least 1"):
        answering(tiny_llava, tiny_localizer, 1, localizer_threads=0)
    with pytest.raises(ValueError, match="one model"):
        answering(localizer.vlm, localizer, 1)
    assert not hasattr(answering(tiny_llava, tiny_localizer, 1), "locating")  # another process loads it


def test_a_localizers_process_starts_no_other(tiny_llava, localizer, monkeypatch):
    monkeypatch.setattr(multiprocessing.current_process(), "name", LOCALIZER)
    with pytest.raises(RunError, match="keeps its work under"):
        answering(tiny_llava, localizer, 1)
    answering(tiny_llava, localizer)


@pytest.mark.slow
@pytest.mark.parametrize("how", ["raises", "limit"])
def test_so_does_its_process(tiny_llava, tiny_localizer, how):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        cut_short(answering(tiny_llava, tiny_localizer, 1), how)
        assert torch.get_num_threads() == 2  # lent to the process meanwhile
    finally:
        torch.set_num_threads(threads)


@pytest.mark.slow
def test_from_the_command_line(tiny_llava, tiny_localizer, tmp_path, capsys):
    flags = [
        "-c", "testbed/ilp", "--model.model", tiny_llava, "--model.localizer", tiny_localizer, "--model.budget", "20",
        "--model.max_new_tokens", "1", "--data.count", "7", "--data.batch_size", "2",
        "--trainer.enable_progress_bar", "false",
    ]  # fmt: skip
    written, tested = [], []
    for ahead in (0, 2):
        folder = tmp_path / str(ahead)
        writer = {"class_path": "cropl.callbacks.predictions.Predictions", "init_args": {"folder": str(folder)}}
        extra = ["--model.ahead", str(ahead)] + (["--model.localizer_threads", "1"] if ahead else [])
        assert main(["predict", *flags, *extra, "--trainer.callbacks", json.dumps([writer])]) == 0
        written.append((folder / "predictions.jsonl").read_text())
        capsys.readouterr()
        assert main(["test", *flags, *extra]) == 0
        tested.append([line for line in capsys.readouterr().out.splitlines() if "test/" in line])
        assert all_ended()
    assert written[0] == written[1] and written[0].count("\n") == 7
    assert tested[0] == tested[1] and any("test/mean_recall" in line for line in tested[0])
    assert main(["predict", *flags, "--model.ahead", "2", "--model.region_source", "gt"]) == 2
    assert "has no effect" in capsys.readouterr().err


GUARDED = SCRIPT.replace("sys.exit(", 'if __name__ == "__main__":\n    sys.exit(')


@pytest.mark.slow
@pytest.mark.parametrize("script", [GUARDED, SCRIPT], ids=["guarded", "unguarded"])
def test_every_rank_has_its_own(tiny_llava, tiny_localizer, localizer, tmp_path, script):
    (tmp_path / "run.py").write_text(script)
    flags = [
        "test", "-c", "testbed/ilp", "--model.model", tiny_llava, "--model.localizer", tiny_localizer,
        "--model.budget", "null", "--model.max_new_tokens", "2", "--data.count", "5", "--data.batch_size", "2",
        "--trainer.enable_progress_bar", "false", "--trainer.devices", "2", "--model.ahead", "1",
    ]  # fmt: skip
    args = [sys.executable, str(tmp_path / "run.py"), str(tmp_path / "two.json"), *flags]
    done = subprocess.run(args, cwd=ROOT, capture_output=True, text=True, timeout=120, check=False)
    if script is SCRIPT:  # the localizer's process runs it again: an error, where two ranks would wait for more
        assert done.returncode == 1 and 'keeps its work under `if __name__ == "__main__":`' in done.stderr
        return
    assert done.returncode == 0, done.stderr[-2000:]
    one = trainer().test(answering(tiny_llava, localizer), TestbedQuestions(count=5, batch_size=2), verbose=False)
    assert json.loads((tmp_path / "two.json").read_text()) == one[0]
