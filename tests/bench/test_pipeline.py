"""What overlapping is worth: figures that belong together, of stages that do what the pipeline does."""

import json
from itertools import count

import pytest
import torch

from cropl import cli
from cropl.bench import pipeline as bench
from cropl.bench.pipeline import PHASES, measure, questions, ratios
from cropl.bench.pipeline_beside import Beside
from cropl.errors import RunError
from cropl.evaluation.pipeline.answer import AnswerStage
from cropl.evaluation.pipeline.items import Failed
from cropl.evaluation.pipeline.stage import ThreadStage
from cropl.models.vlm import load_vlm
from tests.evaluation.stages import Told, broken
from tests.reference.checkpoints import tiny_llava as tiny_llava


@pytest.fixture
def in_thread(monkeypatch):
    """The localizer in a thread: starting a process would take most of the test."""
    monkeypatch.setattr(bench, "ProcessStage", lambda load, threads: ThreadStage(load()))


def test_ratios_are_taken_side_by_side():
    rates = {PHASES[0]: [4.0, 8.0, 6.0], PHASES[1]: [2.0, 4.0, 3.0], PHASES[2]: [0, 0, 0], PHASES[3]: [1.9, 3.9, 2.4]}
    made = ratios(rates, [1.8, 4.0, 2.4])
    assert made["slower_stage"] == "model"
    assert made["of_slower"] == {"median": pytest.approx(0.95), "spread": [pytest.approx(0.8), pytest.approx(0.975)]}
    assert made["machine"]["median"] == pytest.approx(0.9) and made["of_machine"]["median"] == pytest.approx(1.0)
    assert made["of_serial"]["median"] == pytest.approx(1.9 / (1 / (1 / 4 + 1 / 2)))
    swapped = dict(zip(PHASES, [rates[PHASES[1]], rates[PHASES[0]], rates[PHASES[2]], rates[PHASES[3]]]))
    assert ratios(swapped, [1.8, 4.0, 2.4]) == {**made, "slower_stage": "localizer"}


def test_the_pipelines_own_cost_is_told_where_the_model_is_slower():
    cpu = {PHASES[1]: [0.9, 0.8, 1.0], PHASES[3]: [1.0, 1.0, 1.0]}
    slow, fast = [1.0, 1.0, 1.0], [3.0, 3.0, 3.0]
    made = bench._by_cpu({PHASES[0]: fast, PHASES[1]: slow}, cpu, [0.1, 0.0, 0.0])
    assert made == {"median": pytest.approx(0.81), "spread": [pytest.approx(0.8), pytest.approx(1.0)]}
    assert bench._by_cpu({PHASES[0]: slow, PHASES[1]: fast}, cpu, [0.1, 0.0, 0.0]) is None


def test_every_phase_is_measured(in_thread, tiny_llava):
    told = []
    made = measure(load_vlm(tiny_llava), Told, 2, 3, 2, max_new_tokens=1, advance=told.append)
    assert told == list(PHASES) * 2
    assert all(len(rates) == 2 and min(rates) > 0 for rates in made["questions_per_s"].values())
    assert len(made["load_average"]) == 2 and made["slower_stage"] == "model"
    assert made["of_slower"]["median"] > 0 and json.dumps(made)
    assert len(made["waiting"]) == 2 and all(0 <= share < 1 for share in made["waiting"])
    assert all(min(seconds) > 0 for seconds in made["model_cpu_seconds"].values())


def test_what_is_not_located_is_no_measurement(in_thread, tiny_llava):
    class Lost(Told):
        def locate(self, images, questions):
            raise MemoryError

    with pytest.raises(RunError, match="not located: out of memory"):
        measure(load_vlm(tiny_llava), Lost, 2, 3, 1)


def test_what_is_not_answered_says_why_and_leaves_no_localizer(tiny_llava, monkeypatch):
    stages = []

    def started(load, threads):
        stages.append(ThreadStage(load()))
        return stages[-1]

    def gone(*given):
        raise RuntimeError("no thread")

    monkeypatch.setattr(bench, "ProcessStage", started)
    monkeypatch.setattr(AnswerStage, "__call__", lambda self, asked, located: [Failed("the head is lost")] * len(asked))
    vlm = load_vlm(tiny_llava)
    with pytest.raises(RunError, match="not answered: the head is lost"):
        measure(vlm, Told, 2, 3, 1)
    monkeypatch.setattr(bench, "Pipeline", gone)
    threads = torch.get_num_threads()
    with pytest.raises(RuntimeError, match="no thread"):
        measure(vlm, Told, 2, 3, 1, threads=threads + 1)
    assert len(stages) == 4 and not any(stage._thread.is_alive() for stage in stages)
    assert torch.get_num_threads() == threads


class Fading(Told):
    """Loses its questions once it has located so many batches."""

    left = 0

    def locate(self, images, questions):
        if not self.left:
            raise MemoryError
        self.left -= 1
        return super().locate(images, questions)


def test_a_localizer_that_fails_beside_the_model_is_no_measurement():
    dealt = [questions(2)] * 2
    locator = Fading()
    locator.left = 3
    stage = ThreadStage(locator)
    beside = Beside(stage, dealt, count())
    beside._thread.join(timeout=10)  # the fourth batch is an error
    with pytest.raises(RunError, match="not located: out of memory"):
        beside.stop()
    stage.close()


def test_a_localizer_beside_a_fast_model_locates_one_batch_at_least():
    stage = ThreadStage(Told())
    assert Beside(stage, [questions(2)] * 2, count()).stop() > 0
    stage.close()


def test_images_are_encoded():
    asked = questions(3)
    assert all(isinstance(one.image, bytes) and one.question for one in asked)
    assert asked[0].picture().size[0] > 100


@pytest.mark.parametrize(
    ("args", "told"),
    [
        (["--rounds", "0"], "rounds must be at least 1"),
        (["--batches", "1"], "batches=1: give at least 2"),
        (["--threads", "x"], "threads must be an integer"),
        (["--budget", "2.5"], "a share in (0, 1]"),
        (["--turns", "2"], "unknown key 'turns'"),
    ],
)
def test_slips_are_told(args, told, capsys):
    assert cli.main(["bench", "pipeline", *args]) == 2
    assert told in capsys.readouterr().err


def test_the_command_prints_and_writes(monkeypatch, tiny_llava, tmp_path, capsys):
    monkeypatch.setattr(bench, "ProcessStage", lambda load, threads: ThreadStage(Told()))
    out = tmp_path / "rows.json"
    sizes = ["--batch", "2", "--batches", "2", "--rounds", "1", "--max_new_tokens", "1"]
    args = ["--model", tiny_llava, "--out", str(out), *sizes]
    assert cli.main(["bench", "pipeline", *args]) == 0
    printed = capsys.readouterr().out
    assert all(phase in printed for phase in PHASES) and "what the machine allows" in printed
    made = json.loads(out.read_text())
    assert made["model"] == tiny_llava and made["hardware"] and made["commit"] is not None
    assert set(made["questions_per_s"]) == set(PHASES)


@pytest.mark.slow
def test_a_localizer_in_its_process(tiny_llava):
    made = measure(load_vlm(tiny_llava), Told, 2, 3, 1, max_new_tokens=1)
    assert made["questions_per_s"]["pipeline"][0] > 0
    with pytest.raises(RunError, match="could not be loaded"):
        measure(load_vlm(tiny_llava), broken, 2, 3, 1)
