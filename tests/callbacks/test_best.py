"""The best checkpoint is the one that had the score: never a later one of its name, and not one from another branch."""

from __future__ import annotations

import json
import math

import pytest

from cropl.callbacks import complete
from cropl.callbacks.best import BEST
from tests.callbacks.runs import ACCUMULATE, Draws, fit

OPTIONS = {"ckpt_monitor": "score", "val_check_interval": ACCUMULATE}
REPLACED = "or has been replaced: the best is found anew"


class Either(Draws):
    """Weights grow or shrink, so that two runs differ."""

    def __init__(self, scores, sign=1.0):
        super().__init__(scores=[scores.get(step, 0.0) for step in range(24)])
        self.sign = sign

    def training_step(self, batch, index):
        super().training_step(batch, index)
        return self.sign * self.layer.weight.sum()


def best_of(folder):
    said = json.loads((folder / BEST).read_text())
    assert complete.seal(folder / said["name"]) == said["seal"], "it is still what was scored"
    return said["name"], round(said["score"], 4)


def run_of(folder, step):
    return complete.marker(folder / f"step-{step:06d}")["run"]


def test_a_score_from_after_the_continued_checkpoint_counts_for_nothing(tmp_path, caplog):
    """Its checkpoint is replaced on the way, and another one is the best."""
    fit(tmp_path, module=Either({6: 0.9}), max_steps=8, **OPTIONS)
    assert best_of(tmp_path) == ("step-000006", 0.9)
    again = Either({4: 0.5, 6: 0.3}, sign=-1.0)
    fit(tmp_path, tmp_path / "step-000002", module=again, max_steps=8, ckpt_keep=2, **OPTIONS)
    assert REPLACED in caplog.text and best_of(tmp_path) == ("step-000004", 0.5)
    assert run_of(tmp_path, 4) == run_of(tmp_path, 8) != run_of(tmp_path, 2)


@pytest.mark.parametrize("before", [3, 6])
def test_a_new_run_that_dies_before_its_first_validation(tmp_path, caplog, before):
    """It has replaced the old best, or not got as far as that."""
    fit(tmp_path, module=Either({before: 0.9}), max_steps=before + 1, ckpt_keep=2, **OPTIONS)
    assert best_of(tmp_path) == (f"step-{before:06d}", 0.9)

    class Dies(Either):
        def on_validation_start(self):
            raise KeyError("dies")

    late = {"ckpt_monitor": "score", "val_check_interval": 4 * ACCUMULATE}
    with pytest.raises(KeyError):
        fit(tmp_path, module=Dies({}, sign=-1.0), **late)
    assert (run_of(tmp_path, before) == run_of(tmp_path, 4)) == (before == 3)
    fit(tmp_path, "last", module=Either({4: 0.2}, sign=-1.0), max_steps=7, ckpt_keep=2, **late)
    assert REPLACED in caplog.text and best_of(tmp_path) == ("step-000004", 0.2)


def test_the_best_before_a_branch_is_the_branchs_own(tmp_path, caplog):
    """From the start on, and where it is continued; and it stays the other run's as well."""
    scores = {2: 0.9, 5: 0.4, 8: 0.3}
    fit(tmp_path, module=Either(scores), max_steps=7, **OPTIONS)
    for start, steps in ((tmp_path / "step-000004", 5), ("last", 6), (tmp_path / "step-000007", 9)):
        _, trainer = fit(tmp_path, start, module=Either(scores), max_steps=steps, ckpt_keep=2, **OPTIONS)
        best = trainer.checkpoint_callback._best
        assert (best.name, round(best.score, 4)) == best_of(tmp_path) == ("step-000002", 0.9)
    assert "of an earlier run" in caplog.text and REPLACED not in caplog.text


def test_the_last_step_is_the_best(tmp_path, caplog):
    """It is saved twice, ahead of its validation and after it."""
    fit(tmp_path, module=Either({4: 0.9}), max_steps=4, ckpt_keep=2, **OPTIONS)
    assert best_of(tmp_path) == ("step-000004", 0.9)
    fit(tmp_path, "last", module=Either({4: 0.9, 6: 0.5}), max_steps=8, ckpt_keep=2, **OPTIONS)
    assert best_of(tmp_path) == ("step-000004", 0.9) and REPLACED not in caplog.text


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda said: "cut o", False), (lambda said: "[]", False), (lambda said: "{}", False),
        (lambda said: json.dumps(said | {"mode": "min"}), False), (lambda said: json.dumps(said | {"seal": ""}), True),
        (lambda said: json.dumps(said | {"name": "step-000009"}), True),
    ],
)  # fmt: skip
def test_what_a_file_says_of_something_else(tmp_path, caplog, change, told):
    fit(tmp_path, module=Either({2: 0.9}), max_steps=3, **OPTIONS)
    (tmp_path / BEST).write_text(change(json.loads((tmp_path / BEST).read_text())))
    _, trainer = fit(tmp_path, "last", module=Either({4: math.nan}), max_steps=4, **OPTIONS)
    assert trainer.checkpoint_callback._best.name == "" and (REPLACED in caplog.text) == told
