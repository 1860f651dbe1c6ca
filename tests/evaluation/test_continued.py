"""A study that is interrupted, or shared among processes, comes to the same as one that is not."""

from __future__ import annotations

import dataclasses
import random

import pytest

from cropl.errors import UsageError
from cropl.evaluation.journal import forget
from cropl.evaluation.part import Part
from cropl.evaluation.progress import Stages
from cropl.evaluation.run import run_study
from cropl.evaluation.study import Study
from cropl.grid import Region
from cropl.models.localizer import Localizer
from cropl.models.vlm import load_vlm
from cropl.testbed.samples import samples as scenes

ARMS = [
    {"method": "ilp", "region_source": ["gt", "predicted", "random"], "layer": 1, "budget": 16},
    {"method": "random", "layer": 1, "budget": 16},
    {"method": "fastv", "layer": 1, "budget": 16},
]
TIMES = ("seconds", "encode_seconds", "localizer_seconds", "peak_memory_bytes", "text_only_seconds", "threads")


def study(**changes):
    config = {
        "model": "tiny", "localizer": "loc", "data": {"class_path": "x.y"}, "arms": ARMS, "seeds": [0, 1],
        "batch_size": 3, "max_new_tokens": 2, "chunk_images": 2, "bootstrap": 20,
    }  # fmt: skip
    return Study.from_config({**config, **changes})


def text_alone(sample, number):
    bare = {"boxes": [], "region": Region.full(), "image": None, "width": 0, "height": 0}
    return dataclasses.replace(sample, key=f"text-{number}", **bare)


@pytest.fixture(scope="module")
def world(tiny_llava, tiny_localizer):
    made = scenes("test", 8)
    texts = [text_alone(sample, number) for number, sample in enumerate(made[:3])]
    samples = [*made[:2], texts[0], *made[2:5], *texts[1:], *made[5:]]  # among the others
    return load_vlm(tiny_llava), Localizer.from_pretrained(tiny_localizer), samples


def run(world, folder=None, stages=None, part=None, **changes):
    vlm, localizer, samples = world
    return run_study(
        study(**changes), samples, vlm, localizer, stages=stages or Stages(quiet=True), folder=folder,
        part=part or Part(),
    )  # fmt: skip


def plain(outcome):
    rows = [{name: value for name, value in row.items() if name not in TIMES} for row in outcome.results["rows"]]
    return {**outcome.results, "rows": rows}, outcome.predictions


@pytest.fixture(scope="module")
def uninterrupted(world):
    return plain(run(world))


class Killed(BaseException):
    pass


class Deadly(Stages):
    """Ends the run once so many questions are done."""

    def __init__(self, left):
        super().__init__(quiet=True)
        self.left = left

    def advance(self, detail, count=1):
        if detail == "found before":
            return
        self.left -= count
        if self.left < 0:
            raise Killed


class Counting(Stages):
    """Counts what is answered now, and not before."""

    def __init__(self):
        super().__init__(quiet=True)
        self.now = self.before = 0

    def advance(self, detail, count=1):
        if detail == "found before":
            self.before += count
        elif detail:
            self.now += count


@pytest.mark.parametrize("seed", range(5))
def test_an_interrupted_run_continues_to_the_same_end(world, uninterrupted, tmp_path, seed):
    rng = random.Random(seed)
    for left in (rng.randrange(12, 40), rng.randrange(1, 20), rng.randrange(1, 20)):
        with pytest.raises(Killed):
            run(world, tmp_path, Deadly(left))
    last = Counting()
    assert plain(run(world, tmp_path, last)) == uninterrupted
    assert last.before + last.now == 8 * 8 + 3 and last.before > 0
    again = Counting()
    assert plain(run(world, tmp_path, again)) == uninterrupted
    assert (again.before, again.now) == (8 * 8 + 3, 0)


@pytest.mark.parametrize(("count", "size"), [(2, 5), (3, 1), (5, 16)])
def test_parts_come_to_the_same(world, uninterrupted, tmp_path, monkeypatch, count, size):
    """Regions of all parts are waited for, so that here the first runs find none of the later ones'."""
    monkeypatch.setattr("cropl.evaluation.locating.POLL", 0)
    run(world, tmp_path / "before", batch_size=size)
    (tmp_path / "out" / ".partial").mkdir(parents=True)
    for file in (tmp_path / "before" / ".partial").glob("regions*.jsonl"):
        (tmp_path / "out" / ".partial" / file.name).write_bytes(file.read_bytes())
    for index in reversed(range(count)):
        assert run(world, tmp_path / "out", part=Part(index, count), batch_size=size) is None
    last = Counting()
    results, predictions = plain(run(world, tmp_path / "out", last, batch_size=size))
    for row in results["rows"]:
        row["batch_size"] = 3
    assert (results, predictions) == uninterrupted and last.now == 0


def test_a_changed_arm_is_answered_anew_and_others_are_not(world, uninterrupted, tmp_path):
    run(world, tmp_path)
    changed = [ARMS[0], ARMS[1], {**ARMS[2], "layer": 2}]
    stages = Counting()
    run(world, tmp_path, stages, arms=changed)
    assert stages.now == 8


def test_a_budget_over_another_set_is_met_anew(world, tmp_path):
    """The masks follow from all questions: with a limit they are others, and so are the questions."""
    run(world, tmp_path)
    with pytest.raises(UsageError, match="questions"):
        run(world, tmp_path, limit=7)
    forget([tmp_path])
    assert run(world, tmp_path, limit=7).results["rows"][0]["n"] == 7


def test_predictions_are_made_once_for_all_studies(world, tmp_path, monkeypatch):
    cache = {"cache": str(tmp_path / "cache")}
    first = run(world, tmp_path / "a", **cache)
    monkeypatch.setattr(Localizer, "locate", None)
    other = run(world, tmp_path / "b", arms=ARMS[:1], **cache)
    lines = zip(first.predictions, other.predictions)
    assert all(a["predicted_region"] == b["predicted_region"] for a, b in lines)


def test_questions_without_an_image_are_asked_once_for_all_arms(uninterrupted):
    results, predictions = uninterrupted
    assert [row["n"] for row in results["rows"]] == [11] * 6 and results["rows"][0]["text_only"] == 3
    for line in predictions:
        if line["grid"] is None:
            assert len({arm["prediction"] for arm in line["arms"].values()}) == 1
            assert "tokens_kept" not in line["arms"]["dense"]
    dense, ilp = results["rows"][:2]
    assert dense["tokens_kept_mean"] == 576 or dense["tokens_kept_mean"] == dense["tokens_kept_min"]
    assert ilp["tokens_kept_mean"] == pytest.approx(16, abs=1)  # of the questions about an image


def test_a_part_whose_others_never_come_goes_on_alone(world, uninterrupted, tmp_path, monkeypatch, caplog):
    """Parts may be run one after the other, or one may have died."""
    monkeypatch.setattr("cropl.evaluation.locating.POLL", 0)
    monkeypatch.setattr("cropl.evaluation.locating.PATIENCE", 0)
    for index in range(3):
        assert run(world, tmp_path, part=Part(index, 3)) is None
    assert "goes on alone" in caplog.text
    assert plain(run(world, tmp_path)) == uninterrupted
