"""Early stopping and the best checkpoint of a continued run are those of the run that was not interrupted."""

from __future__ import annotations

import json
import os
import signal

import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping

from cropl.callbacks import complete
from cropl.callbacks.best import BEST
from cropl.callbacks.preemption import TERMINATED, Preempted
from cropl.data.writer import ShardWriter
from cropl.datamodules.shards import ShardsDataModule
from tests.attacks import faults
from tests.callbacks.runs import ACCUMULATE, BATCH, SAMPLES, Draws, fit
from tests.data.conftest import make_sample

SCORES = {
    2: 0.1,
    3: 0.2,
    4: 0.3,
    5: 0.9,
    6: 0.2,
    7: 0.5,
    8: 0.4,
    10: 0.4,
    11: 0.35,
    12: 0.45,
    14: 0.1,
    15: 0.4,
    16: 0.3,
    18: 0,
}
MODES = {
    "every two steps": {"val_check_interval": 2 * ACCUMULATE},
    "every epoch": {"val_check_interval": 1.0},
    "inside a step": {"val_check_interval": 2 * ACCUMULATE - 1},
    "over epochs": {"val_check_interval": 3 * ACCUMULATE, "check_val_every_n_epoch": None},
}


class Interrupted(Draws):
    """Is stopped at a place, once, and writes down what each validation sees."""

    def __init__(self, place=None, how="crash"):
        super().__init__()
        self.place, self.how, self.validated = place, how, {}

    def _here(self, *place):
        if place == self.place:
            if self.how == "crash":
                raise KeyError("crash")
            os.kill(os.getpid(), signal.SIGTERM)

    def training_step(self, batch, index):
        if index % ACCUMULATE == 0:
            self._here("step", self.global_step)
        return super().training_step(batch, index)

    def validation_step(self, batch, index):
        seen = [self.global_step, torch.rand(1).item(), float(self.layer.weight.sum())]
        key = (self.trainer.fit_loop.total_batch_idx, index)
        assert self.validated.setdefault(key, seen) == seen
        self.log("score", SCORES.get(self.global_step, 0.0))
        self._here("validation", self.global_step, index)


def run(folder, mode, ckpt=None, module=None, every=1, **options):
    stopping = EarlyStopping("score", patience=3, mode="max")
    module, trainer = fit(
        folder, ckpt, module or Interrupted(), max_epochs=8, callbacks=[stopping], ckpt_every_n_train_steps=every,
        ckpt_monitor="score", **MODES[mode], **options,
    )  # fmt: skip
    return module, trainer.global_step, {**stopping.state_dict(), "stopped_epoch": 0}


def best_of(folder):
    said = json.loads((folder / BEST).read_text())
    return said["name"], said["score"]


@pytest.fixture(scope="module", params=MODES)
def whole(request, tmp_path_factory):
    folder = tmp_path_factory.mktemp("whole")
    module, stopped, state = run(folder, request.param)
    assert 8 < stopped < 32 and state["wait_count"] == 3
    return request.param, module, stopped, state, best_of(folder)


@pytest.mark.parametrize("how", ["crash", "signal"])
@pytest.mark.parametrize(
    ("place", "every"),
    [
        (("step", 4), 1), (("step", 8), 1), (("step", 8), 3), (("step", 6), 50), (("step", 13), 50),
        (("validation", 4, 0), 1), (("validation", 4, 0), 3), (("validation", 7, 1), 1), (("validation", 8, 1), 1),
        (("validation", 8, 1), 50), (("validation", 16, 0), 2),
    ],
)  # fmt: skip
def test_an_interrupted_run_stops_where_the_other_does(whole, tmp_path, place, every, how):
    mode, through, stopped, state, best = whole
    module = Interrupted(place, how)
    try:
        run(tmp_path, mode, module=module, every=every)
    except (KeyError, Preempted):
        found = complete.complete(tmp_path)
        assert not any(complete.damage(path) for path in found)
        assert how == "crash" or found[0].name in (f"step-{place[1]:06d}", f"step-{place[1] + 1:06d}")
    else:
        assert place[0] == "validation" or place[1] > stopped, "not validated there in this mode"
        return  # or has ended before
    continued, ended, after = run(tmp_path, mode, "last", every=every)
    assert (ended, after) == (stopped, state)
    assert continued.steps == through.steps[len(through.steps) - len(continued.steps) :]
    for validated in (module.validated, continued.validated):
        assert validated.items() <= through.validated.items()
    assert module.validated.keys() | continued.validated.keys() == through.validated.keys()
    assert best_of(tmp_path) == best


def numbers(samples):
    return torch.tensor([int(sample.key[1:]) for sample in samples])


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Of an epoch of four steps, whose position is not Lightning's own."""
    folder = tmp_path_factory.mktemp("shards") / "shards"
    with ShardWriter(folder, samples_per_shard=8) as writer:
        for number in range(SAMPLES):
            writer.write(make_sample(number))
    kwargs = {"micro_batch": BATCH, "global_batch": BATCH * ACCUMULATE, "num_workers": 0, "collate": numbers}
    return lambda: ShardsDataModule(str(folder), str(folder), **kwargs)


@pytest.mark.parametrize(
    ("mode", "place", "every"),
    [
        ("every epoch", ("step", 8), 1), ("every epoch", ("validation", 8, 0), 1), ("every epoch", ("step", 13), 50),
        ("inside a step", ("step", 7), 1), ("inside a step", ("step", 6), 50),
        ("inside a step", ("validation", 7, 0), 1), ("over epochs", ("step", 12), 1),
        ("over epochs", ("validation", 12, 0), 1),
    ],
)  # fmt: skip
def test_so_does_one_over_shards(shards, tmp_path, mode, place, every):
    through, *expected = run(tmp_path / "whole", mode, data=shards())
    with pytest.raises(KeyError):
        run(tmp_path / "war", mode, module=Interrupted(place), every=every, data=shards())
    continued, *ended = run(tmp_path / "war", mode, "last", every=every, data=shards())
    assert ended == expected
    assert continued.steps == through.steps[len(through.steps) - len(continued.steps) :]


def signalled(out, world, ckpt, place, every):
    """The second of two processes gets a signal at a place."""
    rank = int(os.environ["LOCAL_RANK"])
    module = Interrupted(place if rank else None, "signal")
    _, ended, state = run(out / "saved", "every epoch", ckpt, module, every, world=world)
    (out / f"end-{rank}.json").write_text(json.dumps([ended, state["wait_count"], float(state["best_score"])]))


@pytest.mark.slow
@pytest.mark.parametrize("every", [1, 50])
def test_so_do_two_processes(tmp_path, every):
    assert faults.run(signalled, tmp_path / "peace", 2, None, None, every) == [0, 0]
    assert faults.run(signalled, tmp_path / "war", 2, None, ("validation", 8, 0), every) == [TERMINATED, 0]
    assert complete.complete(tmp_path / "war" / "saved")[0].name == "step-000008"
    assert faults.run(signalled, tmp_path / "war", 2, "last", None, every) == [0, 0]
    for rank in range(2):
        ends = [json.loads((tmp_path / run / f"end-{rank}.json").read_text()) for run in ("peace", "war")]
        assert ends[0] == ends[1] and 8 < ends[0][0] < 32
    assert best_of(tmp_path / "peace/saved") == best_of(tmp_path / "war/saved")


def test_what_is_cut_off_at_the_end_is_told(tmp_path, caplog):
    with pytest.raises(Preempted):
        fit(tmp_path, module=Interrupted(("validation", 2, 0), "signal"), max_steps=2)
    module, _ = fit(tmp_path, "last", Interrupted(), max_steps=2)
    assert not module.steps and "the last validation was cut off: `cropl validate` does it" in caplog.text
    caplog.clear()
    fit(tmp_path / "whole", module=Interrupted(), max_steps=2)
    fit(tmp_path / "whole", "last", Interrupted(), max_steps=2)
    assert "cut off" not in caplog.text
